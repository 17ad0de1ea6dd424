# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab takes, copies, exports and restores snapshots as ElastiCache does, and refuses what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integration.account import Account, refused
from integration.cutover import SOURCE

from lab import sample_data
from lab.buckets import CANONICAL_ID, EXPORT, export_policy
from lab.nodes import RedisServer, wait_for

# Snapshots


def test_a_snapshot_goes_through_its_states(aws: Account) -> None:
    aws.order({"op": "CreateSnapshot", "delay": 4})
    made = aws.ec.create_snapshot(SnapshotName="Slow-One", CacheClusterId=f"{SOURCE}-002")["Snapshot"]
    assert (made["SnapshotName"], made["SnapshotStatus"], made["SnapshotSource"]) == ("slow-one", "creating", "manual")
    assert aws.group()["Status"] == "snapshotting"
    assert aws.cluster_status(f"{SOURCE}-001") == "available"
    assert aws.cluster_status(f"{SOURCE}-002") == "snapshotting"
    refused(lambda: aws.take("other"), "InvalidCacheClusterState")
    refused(lambda: aws.take("other", ReplicationGroupId=SOURCE), "InvalidReplicationGroupState")
    refused(lambda: aws.ec.delete_snapshot(SnapshotName="slow-one"), "InvalidSnapshotState")
    refused(lambda: aws.ec.copy_snapshot(SourceSnapshotName="slow-one", TargetSnapshotName="x"), "InvalidSnapshotState")
    aws.wait_snapshot("slow-one")
    aws.wait_group()
    shown = aws.ec.describe_snapshots(SnapshotName="slow-one", ShowNodeGroupConfig=True)["Snapshots"][0]
    assert shown["CacheClusterId"] == f"{SOURCE}-002"
    assert shown["EngineVersion"] == "7.1.0"
    assert shown["NodeSnapshots"][0]["CacheSize"].endswith(" MB")
    assert shown["NodeSnapshots"][0]["NodeGroupConfiguration"]["Slots"] == "0-16383"
    aws.order({"op": "DeleteSnapshot", "delay": 0.3})
    assert aws.ec.delete_snapshot(SnapshotName="slow-one")["Snapshot"]["SnapshotStatus"] == "deleting"
    wait_for(lambda: not aws.has_snapshot("slow-one"), "the snapshot to go")


def test_a_replica_is_saved_only_when_it_has_everything(aws: Account) -> None:
    with aws.node(db=9) as client:
        sample_data.fill(client, 3000, 9)
        aws.take("of-replica", ReplicationGroupId=SOURCE)
        aws.create("from-replica", SnapshotName="of-replica")
        assert aws.snapshot_status("of-replica") in ("restoring", "available")
        aws.wait_group("from-replica")
        assert aws.snapshot_status("of-replica") == "available"
        assert aws.node("from-replica", 9).dbsize() == 3000
        client.flushdb()


SNAPSHOT_ERRORS = [
    ("create_snapshot", {"SnapshotName": "x"}, "InvalidParameterCombination", 400),
    ("create_snapshot", {"SnapshotName": "x", "CacheClusterId": "nope"}, "CacheClusterNotFound", 404),
    ("create_snapshot", {"SnapshotName": "x", "ReplicationGroupId": "nope"}, "ReplicationGroupNotFoundFault", 404),
    (
        "create_snapshot",
        {"SnapshotName": "x", "ReplicationGroupId": SOURCE, "CacheClusterId": f"{SOURCE}-002"},
        "InvalidParameterCombination",
        400,
    ),
    *(
        ("create_snapshot", {"SnapshotName": name, "ReplicationGroupId": SOURCE}, "InvalidParameterValue", 400)
        for name in ("", "1st", "a--b", "a-", "a_b", "a" * 41)
    ),
    ("create_snapshot", {"SnapshotName": "Kept", "ReplicationGroupId": SOURCE}, "SnapshotAlreadyExistsFault", 400),
    ("copy_snapshot", {"SourceSnapshotName": "no", "TargetSnapshotName": "x"}, "SnapshotNotFoundFault", 404),
    ("copy_snapshot", {"SourceSnapshotName": "kept", "TargetSnapshotName": "kept"}, "SnapshotAlreadyExistsFault", 400),
    ("copy_snapshot", {"SourceSnapshotName": "kept", "TargetSnapshotName": "-"}, "InvalidParameterValue", 400),
    ("describe_snapshots", {"SnapshotName": "no"}, "SnapshotNotFoundFault", 404),
    ("describe_snapshots", {"MaxRecords": 51}, "InvalidParameterValue", 400),
    ("describe_snapshots", {"SnapshotSource": "mine"}, "InvalidParameterValue", 400),
    ("delete_snapshot", {"SnapshotName": "no"}, "SnapshotNotFoundFault", 404),
]


@pytest.mark.parametrize(("operation", "parameters", "code", "status"), SNAPSHOT_ERRORS)
def test_what_cannot_be_done_to_a_snapshot_is_refused(
    aws: Account, operation: str, parameters: dict[str, Any], code: str, status: int
) -> None:
    aws.ensure_snapshot()
    aws.wait_group()
    refused(lambda: getattr(aws.ec, operation)(**parameters), code, status)


def test_an_error_is_caught_by_its_class(aws: Account) -> None:
    with pytest.raises(aws.ec.exceptions.SnapshotNotFoundFault):
        aws.ec.describe_snapshots(SnapshotName="no")
    with pytest.raises(aws.ec.exceptions.CacheClusterNotFoundFault):
        aws.ec.describe_cache_clusters(CacheClusterId="no")


def test_snapshots_of_a_node_are_limited_and_paged(aws: Account) -> None:
    aws.create("busy")
    aws.wait_group("busy")
    for number in range(20):
        aws.take(f"busy-{number}", CacheClusterId="busy-001")
        aws.wait_group("busy")
    aws.ec.delete_snapshot(SnapshotName="busy-0")
    refused(lambda: aws.take("busy-20", CacheClusterId="busy-001"), "SnapshotQuotaExceededFault")
    aws.ec.copy_snapshot(SourceSnapshotName="busy-1", TargetSnapshotName="busy-copy")
    aws.ec.copy_snapshot(SourceSnapshotName="busy-1", TargetSnapshotName="busy-copy-2")
    wait_for(lambda: not aws.has_snapshot("busy-0"), "the snapshot to go")
    pages = aws.ec.get_paginator("describe_snapshots").paginate(
        CacheClusterId="busy-001", PaginationConfig={"PageSize": 20}
    )
    sizes = [len(page["Snapshots"]) for page in pages]
    assert sizes == [20, 1]
    assert aws.ec.describe_snapshots(CacheClusterId="busy-001", SnapshotSource="system")["Snapshots"] == []


def test_a_copy_holds_the_same(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.order({"op": "CopySnapshot", "delay": 3})
    made = aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="kept-copy")["Snapshot"]
    assert (made["SnapshotName"], made["SnapshotStatus"]) == ("kept-copy", "creating")
    aws.wait_snapshot("kept-copy")
    aws.ec.delete_snapshot(SnapshotName="kept-copy")
    wait_for(lambda: not aws.has_snapshot("kept-copy"), "the copy to go")
    assert aws.snapshot_status("kept") == "available"


# Export


def test_a_snapshot_is_exporting_meanwhile(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.order({"op": "CopySnapshot", "delay": 0.3})
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="meanwhile", TargetBucket=aws.bucket)
    assert aws.snapshot_status("kept") == "exporting"
    refused(lambda: aws.ec.delete_snapshot(SnapshotName="kept"), "InvalidSnapshotState")
    aws.wait_snapshot("kept")
    assert aws.s3.head_object(Bucket=aws.bucket, Key="meanwhile-0001.rdb")["ContentLength"] > 1000
    assert not aws.has_snapshot("meanwhile")
    export = {"SourceSnapshotName": "kept", "TargetSnapshotName": "MEANWHILE", "TargetBucket": aws.bucket}
    refused(
        lambda: aws.ec.copy_snapshot(**export),
        "InvalidParameterValue",
        text=f"The S3 bucket {aws.bucket} already contains an object with key meanwhile-0001.rdb",
    )


def _bucket(aws: Account, name: str, region: str = "eu-central-1", policy: str | None = None) -> str:
    s3 = aws.client("s3", region)
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=name, **where)
    if policy:
        s3.put_bucket_policy(Bucket=name, Policy=policy)
    return name


def _policy(bucket: str, without: str = "", **statement: Any) -> str:
    policy = json.loads(export_policy(bucket, "eu-central-1"))
    policy["Statement"][0]["Action"].remove(without) if without else None
    policy["Statement"][0] |= statement
    return json.dumps(policy)


def _refuses_export(aws: Account, bucket: str, text: str) -> None:
    aws.ensure_snapshot()
    export = {"SourceSnapshotName": "kept", "TargetSnapshotName": "refused", "TargetBucket": bucket}
    refused(lambda: aws.ec.copy_snapshot(**export), "InvalidParameterValue", text=text)
    assert aws.snapshot_status("kept") == "available"


def test_a_bucket_must_be_there_and_in_the_region(aws: Account) -> None:
    _refuses_export(aws, "keyferry-nowhere", "The S3 bucket keyferry-nowhere does not exist")
    _bucket(aws, "keyferry-abroad", "us-east-1", _policy("keyferry-abroad"))
    _refuses_export(aws, "keyferry-abroad", "The S3 bucket keyferry-abroad is outside of the region")


def test_a_bucket_must_be_the_users_own(aws: Account) -> None:
    other = aws.client("s3")

    def from_another_account(request: Any, **_: Any) -> None:
        request.headers["x-moto-account-id"] = "999999999999"

    other.meta.events.register("before-send.s3", from_another_account)
    where = {"LocationConstraint": "eu-central-1"}
    other.create_bucket(Bucket="keyferry-others", CreateBucketConfiguration=where)
    _refuses_export(aws, "keyferry-others", "The S3 bucket keyferry-others is not owned by the authenticated user")


@pytest.mark.parametrize(
    ("permission", "action"), [(name, f"s3:{action}") for name, actions in EXPORT.items() for action in actions]
)
def test_a_bucket_must_grant_every_action(aws: Account, permission: str, action: str) -> None:
    bucket = f"keyferry-lacks-{action[3:].lower()}"
    _bucket(aws, bucket, policy=_policy(bucket, without=action))
    _refuses_export(aws, bucket, f"ElastiCache has not been granted {permission} permissions {action} on the S3 Bucket")


def test_a_bucket_policy_must_mean_elasticache(aws: Account) -> None:
    _bucket(aws, "keyferry-bare")
    _refuses_export(aws, "keyferry-bare", "ElastiCache has not been granted READ permissions")
    abroad = {"Service": "us-east-1.elasticache-snapshot.amazonaws.com"}
    _bucket(aws, "keyferry-principal", policy=_policy("keyferry-principal", Principal=abroad))
    _refuses_export(aws, "keyferry-principal", "ElastiCache has not been granted READ permissions")
    inside = "arn:aws:s3:::keyferry-objects/*"
    _bucket(aws, "keyferry-objects", policy=_policy("keyferry-objects", Resource=inside))
    _refuses_export(aws, "keyferry-objects", "s3:ListBucket")


def test_the_older_way_of_grants_serves_too(aws: Account) -> None:
    aws.ensure_snapshot()
    bucket = _bucket(aws, "keyferry-granted")
    grantee = f"id={CANONICAL_ID}"
    aws.s3.put_bucket_acl(Bucket=bucket, GrantRead=grantee, GrantWrite=grantee, GrantReadACP=grantee)
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="granted", TargetBucket=bucket)
    aws.wait_snapshot("kept")
    assert aws.s3.head_object(Bucket=bucket, Key="granted-0001.rdb")


# Seeds


def _refuses_seed(aws: Account, arn: str, text: str) -> None:
    refused(lambda: aws.create("seeded", SnapshotArns=[arn]), "InvalidParameterValue", text=text)


def test_a_seed_must_be_readable(aws: Account) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key="kms.rdb", Body=b"x", ServerSideEncryption="aws:kms")
    _refuses_seed(aws, f"arn:aws:s3:::{aws.bucket}/none.rdb", "does not exist")
    _refuses_seed(aws, f"arn:aws:s3:::{aws.bucket}/a,b.rdb", "comma")
    _refuses_seed(aws, f"arn:aws:s3:::{aws.bucket}/kms.rdb", "SSE-S3")
    _refuses_seed(aws, "arn:aws:s3:::keyferry-missing/x.rdb", "does not exist")
    _bucket(aws, "keyferry-seeds-abroad", "us-east-1")
    _refuses_seed(aws, "arn:aws:s3:::keyferry-seeds-abroad/x.rdb", "outside of the region")
    _bucket(aws, "keyferry-closed")
    aws.s3.put_object(Bucket="keyferry-closed", Key="x.rdb", Body=b"x")
    _refuses_seed(aws, "arn:aws:s3:::keyferry-closed/x.rdb", "No permission to access S3 object: keyferry-closed/x.rdb")


@pytest.mark.parametrize("damage", ["nonsense", "flipped", "cut"])
def test_a_damaged_seed_fails_as_the_server_refuses_it(aws: Account, tmp_path: Path, damage: str) -> None:
    with RedisServer(tmp_path) as server:
        sample_data.fill(server.client(), 100)
        server.client().save()
        rdb = bytearray(server.rdb.read_bytes())
    rdb[len(rdb) // 2] ^= 1
    body = {"nonsense": b"REDIS0010 nonsense", "flipped": bytes(rdb), "cut": bytes(rdb[: len(rdb) // 2])}[damage]
    aws.s3.put_object(Bucket=aws.bucket, Key=f"{damage}.rdb", Body=body)
    aws.create(f"from-{damage}", SnapshotArns=[f"arn:aws:s3:::{aws.bucket}/{damage}.rdb"])
    group = aws.wait_group(f"from-{damage}", "create-failed")
    assert group["NodeGroups"] == []
    assert aws.cluster_status(f"from-{damage}-001") == "restore-failed"
    aws.ec.delete_replication_group(ReplicationGroupId=f"from-{damage}")
    aws.ec.get_waiter("replication_group_deleted").wait(ReplicationGroupId=f"from-{damage}", WaiterConfig={"Delay": 1})
