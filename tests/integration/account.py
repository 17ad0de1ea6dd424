# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's AWS as a user has it, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from botocore.exceptions import ClientError
from integration.cutover import SOURCE
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.modules import LabModules

from lab import Lab
from lab.nodes import wait_for


class Account(LabModules):
    """What a user of the lab's AWS does, in short."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.bucket = self.info["bucket"]
        self.ec = self.client("elasticache")
        self.s3 = self.client("s3")

    def snapshot_status(self, name: str) -> str:
        return str(self.ec.describe_snapshots(SnapshotName=name)["Snapshots"][0]["SnapshotStatus"])

    def has_snapshot(self, name: str) -> bool:
        return name in {snapshot["SnapshotName"] for snapshot in self.ec.describe_snapshots()["Snapshots"]}

    def group(self, group_id: str = SOURCE) -> dict[str, Any]:
        return dict(self.ec.describe_replication_groups(ReplicationGroupId=group_id)["ReplicationGroups"][0])

    def cluster_status(self, name: str) -> str:
        return str(self.ec.describe_cache_clusters(CacheClusterId=name)["CacheClusters"][0]["CacheClusterStatus"])

    def wait_snapshot(self, name: str, status: str = "available") -> None:
        wait_for(lambda: self.snapshot_status(name) == status, f"snapshot {name} to be {status}")

    def wait_group(self, group_id: str = SOURCE, status: str = "available") -> dict[str, Any]:
        wait_for(lambda: self.group(group_id)["Status"] == status, f"group {group_id} to be {status}")
        return self.group(group_id)

    def take(self, name: str, **source: str) -> None:
        self.ec.create_snapshot(SnapshotName=name, **(source or {"CacheClusterId": f"{SOURCE}-002"}))
        self.wait_snapshot(name)

    def ensure_snapshot(self, name: str = "kept") -> str:
        if not self.has_snapshot(name):
            self.take(name)
            # It is there a moment before its node can be saved again.
            self.wait_group()
        return name

    def create(self, group_id: str, **options: Any) -> None:
        required = {"ReplicationGroupDescription": "a test", "CacheNodeType": "cache.r7g.large"}
        self.ec.create_replication_group(ReplicationGroupId=group_id, **{**required, **options})

    def node(self, group_id: str = SOURCE, db: int = 0, at: int = 0, **options: Any) -> redis.Redis:
        """A client of the default user, as an application has it."""
        port = self.lab("GET", "groups")[group_id]["nodes"][at]["port"]
        return redis.Redis(port=port, db=db, retry=Retry(NoBackoff(), 0), **options)

    def admin(self, group_id: str = SOURCE, db: int = 0, at: int = 0, **options: Any) -> redis.Redis:
        login = {"username": self.info["admin_user"], "password": self.info["admin_password"]}
        return self.node(group_id, db, at, **login, **options)


def refused(call: Callable[[], Any], code: str, status: int = 400, text: str = "") -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert text in caught.value.response["Error"]["Message"]
