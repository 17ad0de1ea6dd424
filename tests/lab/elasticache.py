# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations of ElastiCache, over real servers. A state change takes `delay` seconds, or as a fault orders it."""

from __future__ import annotations

import datetime
import logging
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore import xform_name

from . import validation
from .buckets import Buckets
from .groups import Group, Settings
from .nodes import Tls
from .protocol import AwsError, modelled
from .state import ParameterGroup, ReplicationGroup, Snapshot, default_parameter_groups, family, now
from .validation import clash, identifier, invalid, page

Fields = dict[str, Any]
SNAPSHOTS_PER_DAY = 20
TAGS_PER_RESOURCE = 50
MODIFIABLE = (
    *("ReplicationGroupDescription", "AutomaticFailoverEnabled", "MultiAZEnabled", "SecurityGroupIds"),
    *("SnapshotRetentionLimit", "SnapshotWindow", "SnapshottingClusterId", "CacheNodeType", "CacheParameterGroupName"),
    *("AutoMinorVersionUpgrade", "PreferredMaintenanceWindow"),
)


@dataclass(frozen=True)
class Place:
    """Where an ElastiCache is: its directory, its region and account, who administers its servers."""

    directory: Path
    region: str
    account: str
    admin: tuple[str, str]
    tls: Tls
    delay: float


class ElastiCache:
    """The ElastiCache of one region. The Port that a request asks for is not honoured: servers take free ports."""

    def __init__(self, place: Place, buckets: Buckets) -> None:
        self.place = place
        self.buckets = buckets
        self.groups: dict[str, ReplicationGroup] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.parameter_groups = default_parameter_groups()
        self.subnet_groups: dict[str, Fields] = {"default": self._subnet_group("default", "Default subnet group", [])}
        self.events: list[Fields] = []
        self.tags: dict[str, dict[str, str]] = {}
        # Cluster id -> when a manual snapshot of it was taken; deleting the snapshot does not give it back.
        self._taken: dict[str, list[datetime.datetime]] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        threading.Thread(target=self._keep_timestamps, daemon=True).start()

    def call(self, operation: str, asked: Fields, fault: Fields) -> Fields:
        """Do an operation of the model and give its result; AwsError as AWS answers."""
        method = getattr(self, xform_name(operation), None)
        if method is None:
            raise AwsError("InvalidAction", f"The lab does not have the operation {operation}")
        with self._lock:
            return dict(method(asked, fault))

    def close(self) -> None:
        """End all servers."""
        self._closing.set()
        with self._lock:
            for group in self.groups.values():
                group.servers.kill()

    # Snapshots

    def create_snapshot(self, asked: Fields, fault: Fields) -> Fields:
        name = identifier(asked["SnapshotName"], "SnapshotName")
        if ("ReplicationGroupId" in asked) == ("CacheClusterId" in asked):
            raise clash("Exactly one of ReplicationGroupId and CacheClusterId must be provided.")
        group, nodes = self._snapshot_nodes(asked)
        self._check_new_snapshot(name, group, nodes)
        source = {key: asked[key].lower() for key in ("ReplicationGroupId", "CacheClusterId") if key in asked}
        snapshot = self._add_snapshot(name, group, nodes, {**source, "KmsKeyId": asked.get("KmsKeyId")})
        self._set_tags(snapshot.fields["ARN"], asked.get("Tags", []))
        group.status = "snapshotting"
        group.cluster_statuses = {member: "available" for member in group.members if member not in nodes}

        def finish(status: str) -> None:
            snapshot.status = status
            group.status, group.cluster_statuses = "available", {}
            outcome = "succeeded" if status == "available" else "failed"
            self._event(group.id, "replication-group", f"Snapshot {outcome} for snapshot with ID '{name}'")

        def work() -> None:
            self._take(snapshot, group, nodes)
            finish("available")

        self._begin(fault, work, lambda: finish("failed"))
        return {"Snapshot": snapshot.fields}

    def _snapshot_nodes(self, asked: Fields) -> tuple[ReplicationGroup, list[str]]:
        """The group, and the node of each shard that is saved: a replica where there is one."""
        if "CacheClusterId" in asked:
            name = asked["CacheClusterId"].lower()
            group = self._group_of(name)
            if group.settings.cluster:
                raise clash("Cannot snapshot a single cache cluster of a replication group in cluster mode.")
            if group.cluster_statuses.get(name, group.status) != "available":
                raise modelled("InvalidCacheClusterStateFault", f"Cache cluster {name} is not in available state.")
            return group, [name]
        group = self._group(asked["ReplicationGroupId"])
        return group, self._backup_nodes(group)

    def _backup_nodes(self, group: ReplicationGroup) -> list[str]:
        chosen = group.asked.get("SnapshottingClusterId")
        return [chosen] if chosen else [shard.members[-1] for shard in group.settings.shards]

    def _check_new_snapshot(self, name: str, group: ReplicationGroup, nodes: list[str]) -> None:
        if name in self.snapshots:
            raise modelled("SnapshotAlreadyExistsFault", f"Snapshot with specified name {name} already exists.")
        if group.asked["CacheNodeType"] == "cache.t1.micro":
            raise modelled("SnapshotFeatureNotSupportedFault", "Snapshots are not supported on cache.t1.micro.")
        if group.status != "available":
            raise modelled(
                "InvalidReplicationGroupStateFault", f"Replication group {group.id} is not in available state."
            )
        since = now() - datetime.timedelta(hours=24)
        for node in nodes:
            self._taken[node] = [at for at in self._taken.get(node, []) if at > since]
            if len(self._taken[node]) >= SNAPSHOTS_PER_DAY:
                raise modelled(
                    "SnapshotQuotaExceededFault",
                    f"The quota of {SNAPSHOTS_PER_DAY} manual snapshots in 24 hours is used up for {node}.",
                )

    def _add_snapshot(self, name: str, group: ReplicationGroup, nodes: list[str], source: Fields) -> Snapshot:
        for node in nodes:
            self._taken.setdefault(node, []).append(now())
        described = group.describe()
        copied = ("AutoMinorVersionUpgrade", "SnapshotRetentionLimit", "SnapshotWindow", "CacheNodeType", "Engine")
        fields = {
            "SnapshotName": name,
            **source,
            "ReplicationGroupDescription": described["Description"],
            "SnapshotStatus": "creating",
            "SnapshotSource": "manual",
            **{key: described[key] for key in copied},
            "EngineVersion": group.version,
            "NumCacheNodes": 1,
            "NumNodeGroups": len(group.settings.shards),
            "AutomaticFailover": described["AutomaticFailover"],
            "CacheClusterCreateTime": group.created,
            "CacheParameterGroupName": group.asked["CacheParameterGroupName"],
            "CacheSubnetGroupName": group.asked["CacheSubnetGroupName"],
            "Port": group.asked.get("Port", 6379),
            "NodeSnapshots": [],
            "ARN": self._arn("snapshot", name),
        }
        self.snapshots[name] = Snapshot(fields, [])
        return self.snapshots[name]

    def _take(self, snapshot: Snapshot, group: ReplicationGroup, nodes: list[str]) -> None:
        for shard, node in zip(group.settings.shards, nodes, strict=True):
            path = self._new_file()
            memory, _size = group.servers.snapshot(node, path)
            snapshot.files.append(path)
            slots = {"NodeGroupId": shard.id, "Slots": shard.slots, "ReplicaCount": len(shard.members) - 1}
            fields = {
                "CacheClusterId": node,
                "NodeGroupId": shard.id,
                "CacheNodeId": "0001",
                "NodeGroupConfiguration": slots,
                "CacheSize": f"{max(memory >> 20, 1)} MB",
                "CacheNodeCreateTime": group.created,
                "SnapshotCreateTime": now(),
            }
            snapshot.fields["NodeSnapshots"].append(fields)

    def copy_snapshot(self, asked: Fields, fault: Fields) -> Fields:
        source = self._snapshot(asked["SourceSnapshotName"])
        target = identifier(asked["TargetSnapshotName"], "TargetSnapshotName")
        if source.status != "available":
            raise modelled("InvalidSnapshotStateFault", f"Snapshot is not in available state: {source.status}")
        if "TargetBucket" in asked:
            return self._export(source, target, asked["TargetBucket"], fault)
        if target in self.snapshots:
            raise modelled("SnapshotAlreadyExistsFault", f"Snapshot with specified name {target} already exists.")
        arn = self._arn("snapshot", target)
        copy = Snapshot({**source.fields, "SnapshotName": target, "SnapshotStatus": "creating", "ARN": arn}, [])
        self.snapshots[target] = copy
        self._set_tags(arn, asked.get("Tags", []))

        def work() -> None:
            for file in source.files:
                copy.files.append(self._new_file())
                copy.files[-1].hardlink_to(file)
            copy.status = "available"

        self._begin(fault, work, lambda: setattr(copy, "status", "failed"))
        return {"Snapshot": copy.fields}

    def _export(self, source: Snapshot, target: str, bucket: str, fault: Fields) -> Fields:
        keys = [f"{target}-{number:04}.rdb" for number in range(1, len(source.files) + 1)]
        self.buckets.check_export(bucket, keys)
        # Not among the documented statuses, but seen; who waits must take what he does not know as busy.
        source.status = "exporting"

        def work() -> None:
            for file, key in zip(source.files, keys, strict=True):
                if not fault.get("missing"):
                    self._put(file, bucket, key, fault.get("truncate"))
            source.status = "available"

        self._begin(fault, work, lambda: setattr(source, "status", "failed"))
        return {"Snapshot": {**source.fields, "SnapshotName": target, "ARN": self._arn("snapshot", target)}}

    def _put(self, file: Path, bucket: str, key: str, size: int | None) -> None:
        if size is None:
            self.buckets.put(file, bucket, key)
            return
        part = self._new_file()
        with file.open("rb") as whole:
            part.write_bytes(whole.read(size))
        self.buckets.put(part, bucket, key)

    def describe_snapshots(self, asked: Fields, _fault: Fields) -> Fields:
        if "SnapshotName" in asked:
            self._snapshot(asked["SnapshotName"])
        wanted = {
            key: asked[key].lower() for key in ("SnapshotName", "ReplicationGroupId", "CacheClusterId") if key in asked
        }
        if "SnapshotSource" in asked:
            sources = {"user": "manual", "system": "automated"}
            if asked["SnapshotSource"] not in sources:
                raise invalid("SnapshotSource must be user or system.")
            wanted["SnapshotSource"] = sources[asked["SnapshotSource"]]
        found = [
            self._shown(snapshot, asked.get("ShowNodeGroupConfig", False))
            for _name, snapshot in sorted(self.snapshots.items())
            if all(snapshot.fields.get(key) == value for key, value in wanted.items())
        ]
        records, marker = page(found, asked, most=50)
        return {"Snapshots": records, "Marker": marker}

    @staticmethod
    def _shown(snapshot: Snapshot, with_configuration: bool) -> Fields:
        if with_configuration:
            return snapshot.fields
        nodes = [{**node, "NodeGroupConfiguration": None} for node in snapshot.fields["NodeSnapshots"]]
        return {**snapshot.fields, "NodeSnapshots": nodes}

    def delete_snapshot(self, asked: Fields, fault: Fields) -> Fields:
        snapshot = self._snapshot(asked["SnapshotName"])
        if snapshot.status not in ("available", "failed"):
            raise modelled(
                "InvalidSnapshotStateFault", f"Snapshot is not in available or failed state: {snapshot.status}"
            )
        snapshot.status = "deleting"

        def work() -> None:
            for file in snapshot.files:
                file.unlink()
            self._forget(self.snapshots, snapshot.fields["SnapshotName"], snapshot.fields["ARN"])

        self._begin(fault, work, lambda: setattr(snapshot, "status", "failed"))
        return {"Snapshot": snapshot.fields}

    # Replication groups

    def create_replication_group(self, asked: Fields, fault: Fields) -> Fields:
        group_id = identifier(asked["ReplicationGroupId"], "ReplicationGroupId")
        if group_id in self.groups:
            raise modelled("ReplicationGroupAlreadyExistsFault", f"Replication group {group_id} already exists.")
        validation.group_request(asked)
        engine, version = validation.engine_version(asked)
        parameter_group, is_cluster = self._chosen_parameter_group(asked, family(engine, version))
        subnet_group = asked.get("CacheSubnetGroupName", "default")
        if subnet_group not in self.subnet_groups:
            raise modelled("CacheSubnetGroupNotFoundFault", f"Cache subnet group {subnet_group} does not exist.")
        snapshot = self._restorable(asked["SnapshotName"]) if "SnapshotName" in asked else None
        objects = [self.buckets.check_seed(arn) for arn in asked.get("SnapshotArns", [])]
        if not is_cluster and len(snapshot.files if snapshot else objects) > 1:
            raise clash("A snapshot with several node groups cannot seed a group with cluster mode disabled.")
        settings = Settings(
            engine,
            self.place.admin,
            validation.shards(group_id, asked, is_cluster, len(snapshot.files) if snapshot else 1),
            is_cluster,
            parameter_group.server_settings(),
            asked.get("AuthToken"),
            self._transit_encryption(asked, engine),
        )
        chosen = {"CacheParameterGroupName": parameter_group.name, "CacheSubnetGroupName": subnet_group}
        directory = self.place.directory / "nodes" / f"{group_id}-{uuid.uuid4().hex[:8]}"
        group = ReplicationGroup(
            group_id,
            self._arn("replicationgroup", group_id),
            {**asked, **chosen},
            version,
            settings,
            Group(directory, settings),
        )
        self.groups[group_id] = group
        self._set_tags(group.arn, asked.get("Tags", []))
        self._start(group, snapshot, objects, fault)
        return {"ReplicationGroup": group.describe()}

    def _start(self, group: ReplicationGroup, snapshot: Snapshot | None, objects: list[Any], fault: Fields) -> None:
        if snapshot:
            snapshot.status = "restoring"

        def finish(status: str, message: str) -> None:
            if snapshot:
                snapshot.status = "available"
            group.status = status
            self._event(group.id, "replication-group", message)

        def work() -> None:
            seeds = snapshot.files if snapshot else [self._fetch(*found) for found in objects]
            group.servers.start(seeds)
            finish("available", f"Replication group {group.id} created")

        def failed() -> None:
            seeded = bool(snapshot or objects)
            group.cluster_statuses = dict.fromkeys(group.members, "restore-failed" if seeded else "create-failed")
            finish("create-failed", f"Failed to create replication group {group.id}")

        self._begin(fault, work, failed)

    def _fetch(self, bucket: str, key: str) -> Path:
        path = self._new_file()
        self.buckets.fetch(bucket, key, path)
        return path

    def _chosen_parameter_group(self, asked: Fields, wanted: str) -> tuple[ParameterGroup, bool]:
        """(parameter group, whether cluster mode is enabled)."""
        asks_cluster = (
            asked.get("ClusterMode") == "enabled"
            or asked.get("NumNodeGroups", 1) > 1
            or len(asked.get("NodeGroupConfiguration", [])) > 1
        )
        default = f"default.{wanted}" + (".cluster.on" if asks_cluster else "")
        group = self._parameter_group(asked.get("CacheParameterGroupName", default))
        if group.family != wanted:
            raise clash(f"Expected a parameter group of family {wanted} but found one of family {group.family}")
        is_cluster = group.value("cluster-enabled") == "yes"
        if asks_cluster and not is_cluster:
            raise clash(f"Cluster mode needs a parameter group with cluster-enabled; {group.name} has it not.")
        return group, is_cluster

    def _transit_encryption(self, asked: Fields, engine: str) -> Tls | None:
        if not asked.get("TransitEncryptionEnabled"):
            return None
        if engine == "valkey":
            raise clash(
                "The valkey-server of the lab is built without TLS: TransitEncryptionEnabled needs engine redis."
            )
        return self.place.tls

    def _restorable(self, name: str) -> Snapshot:
        # CreateReplicationGroup declares no error for snapshots.
        if name.lower() not in self.snapshots:
            raise invalid(f"Snapshot {name} not found.")
        snapshot = self.snapshots[name.lower()]
        if snapshot.status != "available":
            raise invalid(f"Snapshot {name} is not in available state: {snapshot.status}")
        return snapshot

    def modify_replication_group(self, asked: Fields, fault: Fields) -> Fields:
        group = self._group(asked["ReplicationGroupId"], "available")
        changes = {key: value for key, value in asked.items() if key not in ("ReplicationGroupId", "ApplyImmediately")}
        if unknown := set(changes) - set(MODIFIABLE):
            raise invalid(f"The lab cannot modify {', '.join(sorted(unknown))}")
        if changes.get("SnapshottingClusterId", group.members[0]) not in group.members:
            raise invalid(f"{changes['SnapshottingClusterId']} is not a member of {group.id}.")
        if "SnapshottingClusterId" in changes and group.settings.cluster:
            raise clash("Cannot set snapshotting cluster for cluster mode enabled replication group")
        self._parameter_group(changes.get("CacheParameterGroupName", group.asked["CacheParameterGroupName"]))
        group.status = "modifying"

        def work() -> None:
            group.asked |= changes
            group.status = "available"

        self._begin(fault, work, lambda: setattr(group, "status", "available"))
        return {"ReplicationGroup": group.describe()}

    def delete_replication_group(self, asked: Fields, fault: Fields) -> Fields:
        group = self._group(asked["ReplicationGroupId"])
        if group.status not in ("available", "create-failed"):
            raise modelled(
                "InvalidReplicationGroupStateFault", f"Replication group {group.id} is not in available state."
            )
        if asked.get("RetainPrimaryCluster"):
            raise clash("The lab does not have RetainPrimaryCluster")
        final, nodes = None, self._backup_nodes(group)
        if "FinalSnapshotIdentifier" in asked:
            name = identifier(asked["FinalSnapshotIdentifier"], "FinalSnapshotIdentifier")
            self._check_new_snapshot(name, group, nodes)
            final = self._add_snapshot(name, group, nodes, {"ReplicationGroupId": group.id})
        group.status, group.cluster_statuses = "deleting", {}

        def work() -> None:
            if final:
                self._take(final, group, nodes)
                final.status = "available"
            group.servers.kill()
            shutil.rmtree(group.servers.directory, ignore_errors=True)
            self._forget(self.groups, group.id, group.arn)
            self._event(group.id, "replication-group", f"Replication group {group.id} deleted")

        def failed() -> None:
            group.status = "available"
            if final:
                final.status = "failed"

        self._begin(fault, work, failed)
        return {"ReplicationGroup": group.describe()}

    def describe_replication_groups(self, asked: Fields, _fault: Fields) -> Fields:
        groups = [self._group(asked["ReplicationGroupId"])] if "ReplicationGroupId" in asked else self.groups.values()
        records, marker = page([group.describe() for group in groups], asked)
        return {"ReplicationGroups": records, "Marker": marker}

    def describe_cache_clusters(self, asked: Fields, _fault: Fields) -> Fields:
        if asked.get("ShowCacheClustersNotInReplicationGroups"):
            return {"CacheClusters": []}
        if "CacheClusterId" in asked:
            self._group_of(asked["CacheClusterId"].lower())
        found = [
            group.describe_cluster(name, asked.get("ShowCacheNodeInfo", False), self._arn("cluster", name))
            for group in self.groups.values()
            for name in group.members
            if asked.get("CacheClusterId", name).lower() == name
        ]
        records, marker = page(found, asked)
        return {"CacheClusters": records, "Marker": marker}

    # Parameter groups, subnet groups, tags, events

    def describe_cache_parameter_groups(self, asked: Fields, _fault: Fields) -> Fields:
        name = asked.get("CacheParameterGroupName")
        groups = [self._parameter_group(name)] if name else self.parameter_groups.values()
        records, marker = page([self._shown_parameter_group(group) for group in groups], asked)
        return {"CacheParameterGroups": records, "Marker": marker}

    def describe_cache_parameters(self, asked: Fields, _fault: Fields) -> Fields:
        parameters = self._parameter_group(asked["CacheParameterGroupName"]).parameters()
        wanted = [found for found in parameters if asked.get("Source", found["Source"]) == found["Source"]]
        records, marker = page(wanted, asked)
        return {"Parameters": records, "Marker": marker, "CacheNodeTypeSpecificParameters": []}

    def create_cache_parameter_group(self, asked: Fields, _fault: Fields) -> Fields:
        name = identifier(asked["CacheParameterGroupName"], "CacheParameterGroupName")
        if name in self.parameter_groups:
            raise modelled("CacheParameterGroupAlreadyExistsFault", f"Cache parameter group {name} already exists.")
        if asked["CacheParameterGroupFamily"] not in {group.family for group in self.parameter_groups.values()}:
            raise invalid(f"CacheParameterGroupFamily {asked['CacheParameterGroupFamily']} is not a valid family.")
        group = ParameterGroup(name, asked["CacheParameterGroupFamily"], asked["Description"])
        self.parameter_groups[name] = group
        return {"CacheParameterGroup": self._shown_parameter_group(group)}

    def modify_cache_parameter_group(self, asked: Fields, _fault: Fields) -> Fields:
        """Values are for groups that are created later; servers that run are not changed."""
        group = self._parameter_group(asked["CacheParameterGroupName"])
        used = any(user.asked["CacheParameterGroupName"] == group.name for user in self.groups.values())
        if used or group.name.startswith("default."):
            raise modelled(
                "InvalidCacheParameterGroupStateFault",
                f"Cache parameter group {group.name} is in use or a default one.",
            )
        known = {parameter["ParameterName"] for parameter in group.parameters()}
        values = {pair["ParameterName"]: pair["ParameterValue"] for pair in asked["ParameterNameValues"]}
        if unknown := set(values) - known:
            raise invalid(f"Unknown parameter: {', '.join(sorted(unknown))}")
        group.values |= values
        return {"CacheParameterGroupName": group.name}

    def _shown_parameter_group(self, group: ParameterGroup) -> Fields:
        return {
            "CacheParameterGroupName": group.name,
            "CacheParameterGroupFamily": group.family,
            "Description": group.description,
            "IsGlobal": False,
            "ARN": self._arn("parametergroup", group.name),
        }

    def create_cache_subnet_group(self, asked: Fields, _fault: Fields) -> Fields:
        name = asked["CacheSubnetGroupName"].lower()
        if name in self.subnet_groups:
            raise modelled("CacheSubnetGroupAlreadyExistsFault", f"Cache subnet group {name} already exists.")
        made = self._subnet_group(name, asked["CacheSubnetGroupDescription"], asked["SubnetIds"])
        self.subnet_groups[name] = made
        return {"CacheSubnetGroup": made}

    def describe_cache_subnet_groups(self, asked: Fields, _fault: Fields) -> Fields:
        name = asked.get("CacheSubnetGroupName", "").lower()
        if name and name not in self.subnet_groups:
            raise modelled("CacheSubnetGroupNotFoundFault", f"Cache subnet group {name} does not exist.")
        found = [self.subnet_groups[name]] if name else list(self.subnet_groups.values())
        records, marker = page(found, asked)
        return {"CacheSubnetGroups": records, "Marker": marker}

    def _subnet_group(self, name: str, description: str, subnets: list[str]) -> Fields:
        return {
            "CacheSubnetGroupName": name,
            "CacheSubnetGroupDescription": description,
            "VpcId": "vpc-lab",
            "Subnets": [{"SubnetIdentifier": subnet} for subnet in subnets],
            "ARN": self._arn("subnetgroup", name),
        }

    def list_tags_for_resource(self, asked: Fields, _fault: Fields) -> Fields:
        return self._tag_list(self._resource(asked["ResourceName"]))

    def add_tags_to_resource(self, asked: Fields, _fault: Fields) -> Fields:
        arn = self._resource(asked["ResourceName"])
        self._set_tags(arn, asked["Tags"])
        return self._tag_list(arn)

    def remove_tags_from_resource(self, asked: Fields, _fault: Fields) -> Fields:
        arn = self._resource(asked["ResourceName"])
        for key in asked["TagKeys"]:
            if key not in self.tags.get(arn, {}):
                raise modelled("TagNotFoundFault", f"Tag {key} not found.")
            del self.tags[arn][key]
        return self._tag_list(arn)

    def _tag_list(self, arn: str) -> Fields:
        return {"TagList": [{"Key": key, "Value": value} for key, value in self.tags.get(arn, {}).items()]}

    def _set_tags(self, arn: str, tags: list[dict[str, str]]) -> None:
        merged = self.tags.get(arn, {}) | {tag["Key"]: tag.get("Value", "") for tag in tags}
        if len(merged) > TAGS_PER_RESOURCE:
            raise modelled("TagQuotaPerResourceExceeded", f"A resource has at most {TAGS_PER_RESOURCE} tags.")
        self.tags[arn] = merged

    def _resource(self, arn: str) -> str:
        """The ARN, when there is such a thing."""
        *head, kind, name = arn.split(":")
        if head != self._arn(kind, name).split(":")[:-2]:
            raise modelled("InvalidARNFault", f"{arn} is not an ARN of this region and account.")
        if kind == "snapshot":
            self._snapshot(name)
        elif kind == "replicationgroup":
            self._group(name)
        elif kind == "cluster":
            self._group_of(name)
        elif kind == "parametergroup":
            self._parameter_group(name)
        else:
            raise modelled("InvalidARNFault", f"The lab keeps no tags for {kind}.")
        return arn

    def describe_events(self, asked: Fields, _fault: Fields) -> Fields:
        until = asked.get("EndTime", now())
        since = asked.get("StartTime", until - datetime.timedelta(minutes=asked.get("Duration", 60)))
        found = [
            event
            for event in self.events
            if since <= event["Date"] <= until
            and all(asked.get(key, event[key]) == event[key] for key in ("SourceIdentifier", "SourceType"))
        ]
        records, marker = page(found, asked)
        return {"Events": records, "Marker": marker}

    def _event(self, source: str, kind: str, message: str) -> None:
        self.events.append({"SourceIdentifier": source, "SourceType": kind, "Message": message, "Date": now()})

    # What all share

    def _group(self, group_id: str, *states: str) -> ReplicationGroup:
        group = self.groups.get(group_id.lower())
        if group is None:
            raise modelled("ReplicationGroupNotFoundFault", f"ReplicationGroup {group_id} not found.")
        if states and group.status not in states:
            raise modelled(
                "InvalidReplicationGroupStateFault", f"Replication group {group.id} is not in available state."
            )
        return group

    def _group_of(self, cluster_id: str) -> ReplicationGroup:
        for group in self.groups.values():
            if cluster_id in group.members:
                return group
        raise modelled("CacheClusterNotFoundFault", f"CacheCluster not found: {cluster_id}")

    def _snapshot(self, name: str) -> Snapshot:
        if name.lower() not in self.snapshots:
            raise modelled("SnapshotNotFoundFault", f"Snapshot {name} not found")
        return self.snapshots[name.lower()]

    def _parameter_group(self, name: str) -> ParameterGroup:
        if name not in self.parameter_groups:
            raise modelled("CacheParameterGroupNotFoundFault", f"CacheParameterGroup {name} not found.")
        return self.parameter_groups[name]

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:elasticache:{self.place.region}:{self.place.account}:{kind}:{name}"

    def _forget(self, table: dict[str, Any], name: str, arn: str) -> None:
        with self._lock:
            del table[name]
            self.tags.pop(arn, None)

    def _new_file(self) -> Path:
        directory = self.place.directory / "files"
        directory.mkdir(exist_ok=True)
        return directory / f"{uuid.uuid4().hex}.rdb"

    def _begin(self, fault: Fields, work: Callable[[], None], failed: Callable[[], None]) -> None:
        """Do the work of a state change in the background, a little later."""
        if fault.get("stuck"):
            return

        def run() -> None:
            if self._closing.wait(fault.get("delay", self.place.delay)):
                return
            try:
                if fault.get("fail"):
                    raise RuntimeError("a fault orders it to fail")
                work()
            except Exception:
                logging.getLogger("lab").exception("a state change failed")
                with self._lock:
                    failed()

        threading.Thread(target=run, daemon=True).start()

    def _keep_timestamps(self) -> None:
        while not self._closing.wait(1):
            for group in list(self.groups.values()):
                if group.is_serving():
                    group.servers.write_timestamp()
