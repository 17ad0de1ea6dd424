# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One region of the lab's AWS: what it holds, how things are found in it, and what happens in the background."""

from __future__ import annotations

import datetime
import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .buckets import Buckets
from .nodes import Tls
from .protocol import modelled
from .state import ParameterGroup, ReplicationGroup, Snapshot, default_parameter_groups, now

Fields = dict[str, Any]
TAGS_PER_RESOURCE = 50


@dataclass(frozen=True)
class Place:
    """Where an ElastiCache is: its directory, its region and account, who administers its servers."""

    directory: Path
    region: str
    account: str
    admin: tuple[str, str]
    tls: Tls
    delay: float


class Region:
    """The tables of one region, and what all operations share."""

    def __init__(self, place: Place, buckets: Buckets) -> None:
        self.place = place
        self.buckets = buckets
        self.groups: dict[str, ReplicationGroup] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.parameter_groups = default_parameter_groups()
        self.subnet_groups: dict[str, Fields] = {}
        self.events: list[Fields] = []
        self.tags: dict[str, dict[str, str]] = {}
        # Cluster id -> when a manual snapshot of it was taken; deleting the snapshot does not give it back.
        self._taken: dict[str, list[datetime.datetime]] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        threading.Thread(target=self._keep_timestamps, daemon=True).start()

    def close(self) -> None:
        """End all servers."""
        self._closing.set()
        with self._lock:
            for group in self.groups.values():
                group.servers.kill()

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

    def _set_tags(self, arn: str, tags: list[dict[str, str]]) -> None:
        merged = self.tags.get(arn, {}) | {tag["Key"]: tag.get("Value", "") for tag in tags}
        if len(merged) > TAGS_PER_RESOURCE:
            raise modelled("TagQuotaPerResourceExceeded", f"A resource has at most {TAGS_PER_RESOURCE} tags.")
        self.tags[arn] = merged

    def _event(self, source: str, kind: str, message: str) -> None:
        self.events.append({"SourceIdentifier": source, "SourceType": kind, "Message": message, "Date": now()})

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
