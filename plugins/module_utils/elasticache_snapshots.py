# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of ElastiCache and their exports to S3, brought to the state that is wanted."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace
from datetime import timedelta

from ansible_collections.amazon.aws.plugins.module_utils.tagging import ansible_dict_to_boto3_tag_list
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_buckets
from ansible_collections.keyferry.redis.plugins.module_utils.aws import Deadline, aws_errors, done_already
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache, Facts
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

SOURCE_BUSY_CODES = ("InvalidCacheClusterState", "InvalidReplicationGroupState")
SNAPSHOT_BUSY_CODES = ("InvalidSnapshotState",)
# Seconds that a snapshot may be available again, or still, without its export to be seen.
EXPORT_GRACE = 120
# S3 tells when an object was written to the second.
CLOCK_GRAIN = timedelta(seconds=1)


@dataclass(frozen=True)
class SnapshotSource:
    """What a snapshot is taken of: the text for messages, the request to CreateSnapshot, and what is told of it."""

    text: str
    request: dict[str, str]
    facts: dict[str, str | None]
    replication_group_id: str | None
    members: frozenset[str]
    warnings: tuple[str, ...] = ()

    def made(self, snapshot: Facts) -> bool:
        """Whether a snapshot is of this source; one of a node says only the node."""
        if self.replication_group_id and snapshot.get("ReplicationGroupId") == self.replication_group_id:
            return True
        return snapshot.get("CacheClusterId") in self.members

    def told(self, snapshot: Facts | None) -> dict[str, str | None]:
        """What a snapshot of this source is of; one that was there may be of another node than would be read now."""
        node = (snapshot or {}).get("CacheClusterId")
        if node in (None, self.facts["cache_cluster_id"]):
            return self.facts
        return {**self.facts, "cache_cluster_id": node, "role": None}


def source_of_cache_cluster(name: str) -> SnapshotSource:
    return SnapshotSource(
        text=f"the cache cluster {name}",
        request={"CacheClusterId": name},
        facts={"replication_group_id": None, "cache_cluster_id": name, "role": None},
        replication_group_id=None,
        members=frozenset([name]),
    )


def source_of_replication_group(api: ElastiCache, name: str) -> SnapshotSource:
    """Decide what CreateSnapshot is given: the group in cluster mode, else a node of it, a replica if there is one.

    Raises KeyferryError when the group does not exist, or is failed or on its way out.
    """
    group = api.replication_group(name)
    if not group:
        raise KeyferryError(
            f"There is no replication group {name} in {api.region}: check replication_group_id and region."
        )
    if group["Status"] in ("deleting", "create-failed"):
        raise KeyferryError(f"The replication group {name} is {group['Status']}: no snapshot can be taken of it.")
    members = frozenset(group.get("MemberClusters", []))
    text = f"the replication group {name}"
    if group.get("ClusterEnabled"):
        facts = {"replication_group_id": name, "cache_cluster_id": None, "role": None}
        return SnapshotSource(text, {"ReplicationGroupId": name}, facts, name, members)
    node, role = _node_to_read(group, api.cache_clusters())
    facts = {"replication_group_id": name, "cache_cluster_id": node, "role": role}
    warnings = (
        () if role == "replica" else (f"{name} has no replica that is available: its primary {node} is snapshotted.",)
    )
    return SnapshotSource(text, {"CacheClusterId": node}, facts, name, members, warnings)


def _node_to_read(group: Facts, clusters: dict[str, Facts]) -> tuple[str, str]:
    """A replica that is available (one that is still being filled would give an empty snapshot), else the primary."""
    nodes = [node for shard in group.get("NodeGroups", []) for node in shard.get("NodeGroupMembers", [])]
    for node in nodes:
        name = node["CacheClusterId"]
        if node.get("CurrentRole") == "replica" and clusters.get(name, {}).get("CacheClusterStatus") == "available":
            return name, "replica"
    for node in nodes:
        if node.get("CurrentRole") == "primary":
            return node["CacheClusterId"], "primary"
    raise KeyferryError(
        f"The replication group {group['ReplicationGroupId']} has no node yet; it is {group['Status']}."
    )


@dataclass(frozen=True)
class Request:
    """Which snapshot is wanted, and how: I(check) asks for what would be done, and changes nothing."""

    name: str
    kms_key_id: str | None
    tags: dict[str, str]
    wait: bool
    check: bool


@dataclass(frozen=True)
class Outcome:
    """What was before (absent, present or exported), what is now, which tags were given, whether that is a change."""

    changed: bool
    before: str
    snapshot: Facts | None
    exports: list[Facts] = field(default_factory=list)
    retagged: dict[str, str] = field(default_factory=dict)


def present(api: ElastiCache, request: Request, source: SnapshotSource | None, deadline: Deadline) -> Outcome:
    """Take the snapshot unless it is there."""
    snapshot = api.snapshot(request.name)
    if not snapshot:
        if not source:
            raise KeyferryError(
                f"There is no snapshot {request.name} in {api.region}. Name its source (replication_group_id or"
                " cache_cluster_id) to take it."
            )
        if not request.check:
            snapshot = create(api, request, source, deadline)
            snapshot = wait_available(api, request.name, deadline) if request.wait else snapshot
        return Outcome(True, "absent", snapshot)
    require_usable(snapshot, source)
    if request.wait and not request.check:
        snapshot = wait_available(api, request.name, deadline)
    retagged = api.ensure_tags(snapshot["ARN"], request.tags, request.check)
    return Outcome(bool(retagged), "present", snapshot, retagged=retagged)


def exported(
    api: ElastiCache, request: Request, source: SnapshotSource | None, export: Export, deadline: Deadline
) -> Outcome:
    """Take the snapshot unless it is there, and export it unless its objects are there."""
    taken = present(api, request, source, deadline)
    if not taken.snapshot:
        return taken
    require_exportable(taken.snapshot)
    exports = export.found(taken.snapshot)
    if exports:
        return replace(taken, before="exported", exports=exports)
    if request.check:
        return replace(taken, changed=True)
    exports, asked = export.run(deadline, request.wait)
    return replace(taken, changed=taken.changed or asked, snapshot=api.snapshot(request.name), exports=exports)


def absent(
    api: ElastiCache, request: Request, group: str | None, cache_cluster: str | None, deadline: Deadline
) -> Outcome:
    """Delete the snapshot unless it is gone, or is not that of the named source and with the request's tags."""
    snapshot = api.snapshot(request.name)
    if not snapshot:
        return Outcome(False, "absent", None)
    going = snapshot["SnapshotStatus"] == "deleting"
    if not going:
        _require_meant(api, request, snapshot, group, cache_cluster)
    if not going and not request.check:
        delete(api, request.name, deadline)
    if request.wait and not request.check:
        api.wait("snapshot_deleted", deadline, SnapshotName=request.name)
        snapshot = None
    return Outcome(not going, "present", snapshot)


def _require_meant(
    api: ElastiCache, request: Request, snapshot: Facts, group: str | None, cache_cluster: str | None
) -> None:
    """Raise KeyferryError if a snapshot that is to be deleted is of another source, or lacks a tag."""
    node = snapshot.get("CacheClusterId")
    if (group and not _is_of_group(api, snapshot, group)) or (cache_cluster and node != cache_cluster):
        other = node or snapshot.get("ReplicationGroupId")
        why = f"is of {other}, not of {group or cache_cluster}"
    else:
        there = api.tags(snapshot["ARN"]) if request.tags else {}
        lacking = [f"{key}={value}" for key, value in request.tags.items() if there.get(key) != value]
        if not lacking:
            return
        why = f"lacks the tags {', '.join(lacking)}"
    raise KeyferryError(f"The snapshot {request.name} {why}, so it is not deleted.", kept=True)


def _is_of_group(api: ElastiCache, snapshot: Facts, group: str) -> bool:
    """Whether a snapshot is of a replication group. Nodes of one that is gone are known by their names."""
    if snapshot.get("ReplicationGroupId") == group:
        return True
    node = snapshot.get("CacheClusterId") or ""
    members = (api.replication_group(group) or {}).get("MemberClusters", [])
    return node in members or re.fullmatch(re.escape(group) + r"-(\d{4}-)?\d{3}", node) is not None


def require_usable(snapshot: Facts, source: SnapshotSource | None) -> None:
    """Raise KeyferryError if a snapshot of the wanted name is not of the source, or cannot become available."""
    name, status = snapshot["SnapshotName"], snapshot["SnapshotStatus"]
    if source and not source.made(snapshot):
        other = snapshot.get("CacheClusterId") or snapshot.get("ReplicationGroupId")
        raise KeyferryError(
            f"The snapshot name {name} is taken: that snapshot is of {other}, not of {source.text}."
            " Choose another name."
        )
    if status == "failed":
        raise KeyferryError(f"The snapshot {name} failed. Delete it (state=absent) and take another.")
    if status == "deleting":
        raise KeyferryError(f"The snapshot {name} is being deleted. Run again when it is gone, or choose another name.")


def create(api: ElastiCache, wanted: Request, source: SnapshotSource, deadline: Deadline) -> Facts:
    """Take a snapshot, and give it back as it is then (creating).

    Tries again until the deadline while the source is busy, with its own daily backup for example. A snapshot that is
    there after all was made by this very request, whose answer was lost.
    """
    request: Facts = {"SnapshotName": wanted.name, **source.request}
    if wanted.kms_key_id:
        request["KmsKeyId"] = wanted.kms_key_id
    if wanted.tags:
        request["Tags"] = ansible_dict_to_boto3_tag_list(wanted.tags)
    doing = f"take the snapshot {wanted.name} of {source.text}"
    try:
        return api.call_when_ready(doing, "create_snapshot", SOURCE_BUSY_CODES, deadline, **request)["Snapshot"]
    except KeyferryError as error:
        if error.result.get("error_code") != "SnapshotAlreadyExistsFault":
            raise
        found = api.snapshot(wanted.name)
        if not found:
            raise
    require_usable(found, source)
    return found


def wait_available(api: ElastiCache, name: str, deadline: Deadline) -> Facts:
    """Wait until a snapshot is available (again) and give it back. Raises KeyferryError when it fails."""
    try:
        api.wait("snapshot_available", deadline, SnapshotName=name)
    except KeyferryError as error:
        if not error.result.get("ended_as"):
            raise
        snapshot = api.snapshot(name) or {}
        source, events = _source_and_events(api, snapshot)
        told = f" Events: {'; '.join(events[-10:])}." if events else ""
        raise KeyferryError(
            f"The snapshot {name} of {source} ended as {error.result['ended_as']}.{told} Delete it (state=absent) and"
            " take another.",
            events=events,
        ) from error
    return api.snapshot(name) or {}


def _source_and_events(api: ElastiCache, snapshot: Facts) -> tuple[str, list[str]]:
    """What a snapshot is of, and what AWS noted of that."""
    group, node = snapshot.get("ReplicationGroupId"), snapshot.get("CacheClusterId")
    if node and not group:
        group = api.cache_clusters().get(node, {}).get("ReplicationGroupId")
    return node or group or "nothing any more", api.events(group, [node] if node else [])


def delete(api: ElastiCache, name: str, deadline: Deadline) -> None:
    """Ask for a snapshot's deletion; until the deadline while it is busy, being taken or copied for example."""
    with done_already("SnapshotNotFoundFault"):
        api.call_when_ready(
            f"delete the snapshot {name}", "delete_snapshot", SNAPSHOT_BUSY_CODES, deadline, SnapshotName=name
        )


class Export:
    """A snapshot's RDB files in a bucket: one for each shard, named TARGET-NNNN.rdb."""

    def __init__(self, api: ElastiCache, s3_client: t.Any, snapshot_name: str, bucket: str, target: str) -> None:
        self._api = api
        self._s3 = s3_client
        self._name = snapshot_name
        self._bucket = bucket
        # ElastiCache stores names in lower case.
        self._target = target.lower()

    def preflight(self) -> list[str]:
        """Raise KeyferryError if the bucket surely cannot take the export; give back warnings."""
        key = f"{self._target}-0001.rdb"
        api = self._api
        return elasticache_buckets.require_export_bucket(self._s3, self._bucket, key, api.region, api.partition)

    def found(self, snapshot: Facts) -> list[Facts] | None:
        """The export's objects (bucket, key, size), sorted; None unless there is one for each shard.

        An object in S3 is whole or not there. One that is older than the snapshot is of another: KeyferryError.
        """
        with aws_errors(f"list the objects of the bucket {self._bucket}"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._target}-")
            objects = [each for page in pages for each in page.get("Contents", [])]
        name = re.compile(re.escape(self._target) + r"-\d{4}\.rdb")
        objects = sorted((each for each in objects if name.fullmatch(each["Key"])), key=lambda each: each["Key"])
        shards = shard_count(snapshot)
        begun = taken(snapshot)
        stale = [each["Key"] for each in objects if begun and each["LastModified"] + CLOCK_GRAIN < begun]
        if stale or len(objects) > shards:
            keys = ", ".join(stale or [each["Key"] for each in objects])
            raise KeyferryError(
                f"The bucket {self._bucket} holds {keys}, which the snapshot {self._name} ({shards} shards, taken"
                f" {begun}) did not write. Choose another target_name, or remove them."
            )
        if len(objects) < shards or not all(each["Size"] for each in objects):
            return None
        return [{"bucket": self._bucket, "key": each["Key"], "size": each["Size"]} for each in objects]

    def run(self, deadline: Deadline, wait: bool) -> tuple[list[Facts], bool]:
        """Export, and give back the objects and whether an export was asked for.

        An export that is under way already, of a run that was killed for example, is waited for.
        """
        asked, last_look = False, 0.0
        while True:
            snapshot = self._api.snapshot(self._name) or {}
            is_busy = snapshot.get("SnapshotStatus") != "available"
            if is_busy and not wait:
                return [], asked
            if is_busy:
                snapshot = wait_available(self._api, self._name, deadline)
            require_exportable(snapshot)
            exports = self.found(snapshot)
            if exports:
                return exports, asked
            if not asked or is_busy:
                asked = asked or self._ask(deadline)
                if not wait:
                    return [], asked
                last_look = min(deadline.elapsed + EXPORT_GRACE, deadline.seconds)
            elif deadline.elapsed >= last_look:
                raise KeyferryError(
                    f"AWS ended the export of the snapshot {self._name}, but {self._target}-NNNN.rdb is not whole in"
                    f" the bucket {self._bucket}. Remove what is there of it, and run again."
                )
            deadline.sleep()

    def _ask(self, deadline: Deadline) -> bool:
        """Call CopySnapshot; False when the snapshot is busy, or the objects have come, so that it is to look again."""
        doing = f"export the snapshot {self._name} to the bucket {self._bucket} as {self._target}"
        request = {"SourceSnapshotName": self._name, "TargetSnapshotName": self._target, "TargetBucket": self._bucket}
        try:
            self._api.call(doing, "copy_snapshot", **request)
        except KeyferryError as error:
            # Either may be the echo of this very request, whose first answer was lost.
            busy = error.result.get("error_code") in SNAPSHOT_BUSY_CODES
            there = "already contains an object" in error.msg and self.found(self._api.snapshot(self._name) or {})
            if deadline.passed or not (busy or there):
                raise
            return False
        return True


def shard_count(snapshot: Facts) -> int:
    return max(snapshot.get("NumNodeGroups") or 1, 1)


def require_exportable(snapshot: Facts) -> None:
    if snapshot.get("DataTiering") == "enabled":
        raise KeyferryError(
            f"The snapshot {snapshot['SnapshotName']} is of nodes with data tiering, which AWS cannot export to S3."
            " Restore it into r6gd nodes instead (snapshot_name of elasticache_replication_group)."
        )


def taken(snapshot: Facts) -> t.Any:
    """When the snapshot was begun; None if AWS does not say."""
    times = [node["SnapshotCreateTime"] for node in snapshot.get("NodeSnapshots", []) if node.get("SnapshotCreateTime")]
    return min(times, default=None)
