# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an ElastiCache of one region holds: replication groups, snapshots, parameter and subnet groups, events, tags."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .groups import Group, Settings, Shard

# Engine -> version as it is asked for -> version as it is shown.
VERSIONS = {
    "redis": {"5.0.6": "5.0.6", "6.0": "6.0.5", "6.2": "6.2.6", "7.0": "7.0.7", "7.1": "7.1.0"},
    "valkey": {"7.2": "7.2.6", "8.0": "8.0.1", "8.1": "8.1.0", "9.0": "9.0.0", "9.1": "9.1.0"},
}

# AWS's own default; Service Quotas tells it.
NODES_PER_REGION = 300

# What only a new group takes: AWS refuses to change it while a group uses the parameter group.
FIXED_PARAMETERS = ("cluster-enabled", "databases")

# Parameter -> (default, data type, allowed values, whether the servers are started with it).
PARAMETERS = {
    "cluster-enabled": ("no", "string", "yes,no", False),
    "databases": ("16", "integer", "1-1200000", True),
    "maxmemory-policy": ("volatile-lru", "string", "volatile-lru,allkeys-lru,volatile-ttl,noeviction", True),
    "notify-keyspace-events": ("", "string", "", True),
    "reserved-memory-percent": ("25", "integer", "0-100", False),
    "timeout": ("0", "integer", "0,20-", True),
}


def now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


def family(engine: str, version: str) -> str:
    """The parameter group family of an engine version: redis7, redis6.x, valkey9."""
    major = version.split(".")[0]
    return engine + {"5": "5.0", "6": "6.x"}.get(major, major)


@dataclass
class ParameterGroup:
    """A cache parameter group: its family, and what differs from the defaults."""

    name: str
    family: str
    description: str
    values: dict[str, str] = field(default_factory=dict)

    def value(self, name: str) -> str:
        return self.values.get(name, PARAMETERS[name][0])

    def parameters(self) -> list[dict[str, Any]]:
        """Its parameters in the shape of DescribeCacheParameters."""
        return [
            {
                "ParameterName": name,
                "ParameterValue": self.value(name),
                "Source": "user" if name in self.values else "system",
                "DataType": data_type,
                "AllowedValues": allowed,
                "IsModifiable": True,
                "MinimumEngineVersion": "5.0.6",
                "ChangeType": "requires-reboot" if name in FIXED_PARAMETERS else "immediate",
            }
            for name, (_default, data_type, allowed, _used) in PARAMETERS.items()
        ]

    def server_settings(self) -> dict[str, str]:
        """redis.conf settings; a server in cluster mode has no number of databases to set."""
        in_cluster_mode = self.value("cluster-enabled") == "yes"
        used = [name for name, (_default, _type, _allowed, is_used) in PARAMETERS.items() if is_used]
        return {name: self.value(name) for name in used if not (name == "databases" and in_cluster_mode)}

    def immediate_settings(self) -> dict[str, str]:
        """Of `server_settings`, what can be set while a server runs."""
        return {name: value for name, value in self.server_settings().items() if name not in FIXED_PARAMETERS}


def default_parameter_groups() -> dict[str, ParameterGroup]:
    """default.redis7, default.redis7.cluster.on and so on."""
    groups = {}
    for name in {family(engine, version) for engine, versions in VERSIONS.items() for version in versions}:
        off = ParameterGroup(f"default.{name}", name, f"Default parameter group for {name}")
        on = ParameterGroup(f"{off.name}.cluster.on", name, f"{off.description} with cluster mode on")
        on.values["cluster-enabled"] = "yes"
        groups |= {off.name: off, on.name: on}
    return groups


@dataclass
class Snapshot:
    """A snapshot: its fields in the model's shape, its RDB files (one a shard), whether its source has cluster mode."""

    fields: dict[str, Any]
    files: list[Path]
    from_cluster: bool

    @property
    def status(self) -> str:
        return str(self.fields["SnapshotStatus"])

    @status.setter
    def status(self, status: str) -> None:
        self.fields["SnapshotStatus"] = status


@dataclass
class ReplicationGroup:
    """A replication group: what was asked for (`asked`, in the model's names) and the servers behind it."""

    id: str
    arn: str
    asked: dict[str, Any]
    version: str
    settings: Settings
    servers: Group
    status: str = "creating"
    # Statuses of single clusters, where they differ from the group's.
    cluster_statuses: dict[str, str] = field(default_factory=dict)
    created: datetime.datetime = field(default_factory=now)

    @property
    def members(self) -> list[str]:
        return [name for shard in self.settings.shards for name in shard.members]

    def is_serving(self) -> bool:
        """Whether its servers are up; only then has it endpoints."""
        return self.status in ("available", "snapshotting", "modifying")

    def describe(self) -> dict[str, Any]:
        """In the shape of ReplicationGroup."""
        asked = self.asked
        fields = {
            "ReplicationGroupId": self.id,
            "Description": asked["ReplicationGroupDescription"],
            "Status": self.status,
            "PendingModifiedValues": {},
            "MemberClusters": self.members,
            "NodeGroups": [self._node_group(shard) for shard in self.settings.shards] if self.is_serving() else [],
            "AutomaticFailover": _on_off(asked.get("AutomaticFailoverEnabled")),
            "MultiAZ": _on_off(asked.get("MultiAZEnabled")),
            "SnapshottingClusterId": asked.get("SnapshottingClusterId"),
            "SnapshotRetentionLimit": asked.get("SnapshotRetentionLimit", 0),
            "SnapshotWindow": asked.get("SnapshotWindow", "03:00-04:00"),
            "ClusterEnabled": self.settings.cluster,
            "ClusterMode": _on_off(self.settings.cluster),
            "CacheNodeType": asked["CacheNodeType"],
            "AuthTokenEnabled": "AuthToken" in asked,
            "UserGroupIds": asked.get("UserGroupIds", []),
            "DataTiering": _on_off(asked.get("DataTieringEnabled")),
            "KmsKeyId": asked.get("KmsKeyId"),
            "TransitEncryptionEnabled": asked.get("TransitEncryptionEnabled", False),
            "AtRestEncryptionEnabled": asked.get("AtRestEncryptionEnabled", self.settings.engine == "valkey"),
            "ARN": self.arn,
            "ReplicationGroupCreateTime": self.created,
            "AutoMinorVersionUpgrade": asked.get("AutoMinorVersionUpgrade", True),
            "NetworkType": "ipv4",
            "IpDiscovery": "ipv4",
            "Engine": self.settings.engine,
        }
        if self.settings.cluster and self.is_serving():
            fields["ConfigurationEndpoint"] = self._endpoint(self.members[0])
        return fields

    def _node_group(self, shard: Shard) -> dict[str, Any]:
        members = [
            {"CacheClusterId": name, "CacheNodeId": "0001", "PreferredAvailabilityZone": "lab-1a"}
            for name in shard.members
        ]
        fields: dict[str, Any] = {"NodeGroupId": shard.id, "Status": "available", "NodeGroupMembers": members}
        if self.settings.cluster:
            return {**fields, "Slots": shard.slots}
        for at, member in enumerate(members):
            member["CurrentRole"] = "replica" if at else "primary"
            member["ReadEndpoint"] = self._endpoint(shard.members[at])
        fields["PrimaryEndpoint"] = self._endpoint(shard.members[0])
        # On AWS a name that answers with one of the replicas.
        return {**fields, "ReaderEndpoint": self._endpoint(shard.members[-1])}

    def _endpoint(self, name: str) -> dict[str, Any]:
        return {"Address": "127.0.0.1", "Port": self.servers.nodes[name].port}

    def describe_cluster(self, name: str, with_nodes: bool, arn: str) -> dict[str, Any]:
        """One member, in the shape of CacheCluster."""
        node = {
            "CacheNodeId": "0001",
            "CacheNodeStatus": "available",
            "CacheNodeCreateTime": self.created,
            "ParameterGroupStatus": "in-sync",
            "Endpoint": self._endpoint(name) if self.is_serving() else None,
        }
        return {
            "CacheClusterId": name,
            "CacheNodeType": self.asked["CacheNodeType"],
            "Engine": self.settings.engine,
            "EngineVersion": self.version,
            "CacheClusterStatus": self.cluster_statuses.get(name, self.status),
            "NumCacheNodes": 1,
            "CacheClusterCreateTime": self.created,
            "CacheParameterGroup": {
                "CacheParameterGroupName": self.asked["CacheParameterGroupName"],
                "ParameterApplyStatus": "in-sync",
            },
            "CacheSubnetGroupName": self.asked["CacheSubnetGroupName"],
            "CacheNodes": [node] if with_nodes else [],
            "SecurityGroups": [
                {"SecurityGroupId": group, "Status": "active"} for group in self.asked.get("SecurityGroupIds", [])
            ],
            "ReplicationGroupId": self.id,
            "SnapshotRetentionLimit": 0,
            "PreferredMaintenanceWindow": self.asked.get("PreferredMaintenanceWindow", "sun:05:00-sun:06:00"),
            "AuthTokenEnabled": "AuthToken" in self.asked,
            "TransitEncryptionEnabled": self.asked.get("TransitEncryptionEnabled", False),
            "ARN": arn,
        }


def _on_off(value: Any) -> str:
    return "enabled" if value else "disabled"
