# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations of ElastiCache, over real servers. A state change takes `delay` seconds, or as a fault orders it."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from botocore import xform_name

from . import validation
from .access import Access
from .catalogue import Catalogue
from .groups import Group, Settings
from .nodes import Tls
from .protocol import AwsError, modelled
from .region import Fields
from .snapshots import Snapshots
from .state import NODES_PER_REGION, ParameterGroup, ReplicationGroup, Snapshot, family
from .validation import clash, identifier, invalid, page

MODIFIABLE = (
    *("ReplicationGroupDescription", "AutomaticFailoverEnabled", "MultiAZEnabled", "SecurityGroupIds"),
    *("SnapshotRetentionLimit", "SnapshotWindow", "SnapshottingClusterId", "CacheNodeType", "CacheParameterGroupName"),
    *("AutoMinorVersionUpgrade", "PreferredMaintenanceWindow"),
)


class ElastiCache(Catalogue, Access, Snapshots):
    """The ElastiCache of one region. The Port that a request asks for is not honoured: servers take free ports."""

    def call(self, operation: str, asked: Fields, fault: Fields) -> Fields:
        """Do an operation of the model and give its result; AwsError as AWS answers."""
        method = getattr(self, xform_name(operation), None)
        if method is None:
            raise AwsError("InvalidAction", f"The lab does not have the operation {operation}")
        with self._lock:
            return dict(method(asked, fault))

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
        validation.data_tiering(asked, snapshot.fields["DataTiering"] == "enabled" if snapshot else False)
        objects = [self.buckets.check_seed(arn) for arn in asked.get("SnapshotArns", [])]
        if not is_cluster and (snapshot.from_cluster if snapshot else len(objects) > 1):
            raise clash("A snapshot of a group in cluster mode cannot seed one with cluster mode disabled.")
        settings = Settings(
            engine,
            self.place.admin,
            validation.shards(group_id, asked, is_cluster, len(snapshot.files) if snapshot else 1),
            is_cluster,
            parameter_group.server_settings(),
            asked.get("AuthToken"),
            self._transit_encryption(asked, engine),
            self._user_rules(asked, engine),
        )
        self._require_nodes(sum(len(shard.members) for shard in settings.shards))
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
        self._set_tags(group.arn, asked.get("Tags", []))
        self.groups[group_id] = group
        self._start(group, snapshot, objects, fault)
        return {"ReplicationGroup": group.describe()}

    def _require_nodes(self, wanted: int) -> None:
        there = sum(len(shard.members) for group in self.groups.values() for shard in group.settings.shards)
        if there + wanted > NODES_PER_REGION:
            raise modelled(
                "NodeQuotaForCustomerExceededFault",
                f"The quota of {NODES_PER_REGION} nodes is used up: {there} nodes there, {wanted} asked for.",
            )

    def _start(self, group: ReplicationGroup, snapshot: Snapshot | None, objects: list[Any], fault: Fields) -> None:
        if snapshot:
            snapshot.status = "restoring"

        def finish(status: str, message: str) -> None:
            if snapshot:
                snapshot.status = "available"
            group.status = status
            self._event(group.id, "replication-group", message)

        def work() -> None:
            fetched = [self._fetch(*found) for found in objects]
            try:
                group.servers.start(snapshot.files if snapshot else fetched)
            finally:
                for file in fetched:
                    file.unlink()
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
        parameters = self._parameter_group(
            changes.get("CacheParameterGroupName", group.asked["CacheParameterGroupName"])
        )
        group.status = "modifying"

        def work() -> None:
            group.asked |= changes
            group.servers.configure(parameters.immediate_settings())
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
