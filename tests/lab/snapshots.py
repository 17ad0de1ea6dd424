# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: taken, copied, exported, described, deleted."""

from __future__ import annotations

import datetime
from pathlib import Path

from .protocol import modelled
from .region import Fields, Region
from .state import ReplicationGroup, Snapshot, now
from .validation import clash, identifier, invalid, page

SNAPSHOTS_PER_DAY = 20


class Snapshots(Region):
    """The operations on snapshots. Each of them holds real RDB files, one a shard."""

    def create_snapshot(self, asked: Fields, fault: Fields) -> Fields:
        name = identifier(asked["SnapshotName"], "SnapshotName")
        if ("ReplicationGroupId" in asked) == ("CacheClusterId" in asked):
            raise clash("Exactly one of ReplicationGroupId and CacheClusterId must be provided.")
        group, nodes = self._snapshot_nodes(asked)
        self._check_new_snapshot(name, group, nodes)
        source = {key: asked[key].lower() for key in ("ReplicationGroupId", "CacheClusterId") if key in asked}
        self._set_tags(self._arn("snapshot", name), asked.get("Tags", []))
        snapshot = self._add_snapshot(name, group, nodes, {**source, "KmsKeyId": asked.get("KmsKeyId")})
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
            "DataTiering": described["DataTiering"],
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
        self.snapshots[name] = Snapshot(fields, [], group.settings.cluster)
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
        self._set_tags(arn, asked.get("Tags", []))
        fields = {**source.fields, "SnapshotName": target, "SnapshotStatus": "creating", "ARN": arn}
        copy = Snapshot(fields, [], source.from_cluster)
        self.snapshots[target] = copy

        def work() -> None:
            for file in source.files:
                copy.files.append(self._new_file())
                copy.files[-1].hardlink_to(file)
            copy.status = "available"

        self._begin(fault, work, lambda: setattr(copy, "status", "failed"))
        return {"Snapshot": copy.fields}

    def _export(self, source: Snapshot, target: str, bucket: str, fault: Fields) -> Fields:
        keys = [f"{target}-{number:04}.rdb" for number in range(1, len(source.files) + 1)]
        if source.fields["DataTiering"] == "enabled":
            raise clash("A snapshot of nodes with data tiering cannot be exported.")
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
        part.unlink()

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
