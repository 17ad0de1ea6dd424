# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's replication groups, and what they are made of, live and end as those of ElastiCache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from integration.account import Account, refused
from integration.cutover import SOURCE, is_running

from lab import Lab, sample_data
from lab.groups import TIMESTAMP_KEY
from lab.nodes import RedisServer, wait_for
from lab.prove import prove

# Replication groups

GROUP_ERRORS = [
    ({"ReplicationGroupId": SOURCE}, "ReplicationGroupAlreadyExists", 400),
    ({"ReplicationGroupId": "a--b"}, "InvalidParameterValue", 400),
    ({"ReplicationGroupDescription": " "}, "InvalidParameterValue", 400),
    ({"CacheNodeType": "r7g.large"}, "InvalidParameterValue", 400),
    ({"Engine": "memcached"}, "InvalidParameterValue", 400),
    ({"EngineVersion": "3.0"}, "InvalidParameterCombination", 400),
    ({"CacheParameterGroupName": "none"}, "CacheParameterGroupNotFound", 404),
    ({"CacheParameterGroupName": "default.redis6.x"}, "InvalidParameterCombination", 400),
    ({"CacheSubnetGroupName": "none"}, "CacheSubnetGroupNotFoundFault", 400),
    ({"NumCacheClusters": 7}, "InvalidParameterValue", 400),
    ({"NumCacheClusters": 2, "ReplicasPerNodeGroup": 1}, "InvalidParameterCombination", 400),
    ({"AutomaticFailoverEnabled": True}, "InvalidParameterCombination", 400),
    ({"NumCacheClusters": 2, "MultiAZEnabled": True}, "InvalidParameterCombination", 400),
    ({"AuthToken": "0123456789abcdef"}, "InvalidParameterCombination", 400),
    ({"AuthToken": "short", "TransitEncryptionEnabled": True}, "InvalidParameterValue", 400),
    ({"SnapshotName": "none"}, "InvalidParameterValue", 400),
    ({"SnapshotName": "a", "SnapshotArns": ["b"]}, "InvalidParameterCombination", 400),
    ({"NumNodeGroups": 2}, "InvalidParameterCombination", 400),
    ({"NumNodeGroups": 91, "AutomaticFailoverEnabled": True}, "InvalidParameterValue", 400),
    ({"GlobalReplicationGroupId": "x"}, "InvalidParameterValue", 400),
    ({"UserGroupIds": ["none"]}, "UserGroupNotFound", 404),
    ({"CacheNodeType": "cache.r6gd.xlarge"}, "InvalidParameterCombination", 400),
    ({"DataTieringEnabled": True}, "InvalidParameterCombination", 400),
    ({"Engine": "valkey", "TransitEncryptionEnabled": True}, "InvalidParameterCombination", 400),
]


@pytest.mark.parametrize(("options", "code", "status"), GROUP_ERRORS)
def test_a_group_that_cannot_be_is_refused(aws: Account, options: dict[str, Any], code: str, status: int) -> None:
    refused(
        lambda: aws.create(**{"group_id": options.get("ReplicationGroupId", "wrong"), **_rest(options)}), code, status
    )


def _rest(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "ReplicationGroupId"}


def test_a_group_lives_and_ends(aws: Account) -> None:
    aws.create("mortal", NumCacheClusters=3, AutomaticFailoverEnabled=True, Tags=[{"Key": "team", "Value": "a"}])
    refused(lambda: aws.ec.delete_replication_group(ReplicationGroupId="mortal"), "InvalidReplicationGroupState")
    aws.ec.get_waiter("replication_group_available").wait(ReplicationGroupId="mortal", WaiterConfig={"Delay": 1})
    group = aws.group("mortal")
    assert group["MemberClusters"] == ["mortal-001", "mortal-002", "mortal-003"]
    assert [member["CurrentRole"] for member in group["NodeGroups"][0]["NodeGroupMembers"]] == [
        "primary",
        "replica",
        "replica",
    ]
    shown = aws.ec.describe_cache_clusters(CacheClusterId="mortal-003", ShowCacheNodeInfo=True)["CacheClusters"][0]
    replica = shown["CacheNodes"][0]["Endpoint"]
    assert (shown["EngineVersion"], replica["Address"]) == ("7.1.0", "127.0.0.1")
    aws.node("mortal").set("a", "b")
    reading = redis.Redis(port=replica["Port"])
    wait_for(lambda: reading.get("a") == b"b", "the replica to have it")
    with pytest.raises(redis.ReadOnlyError):
        reading.set("a", "c")
    assert aws.ec.list_tags_for_resource(ResourceName=group["ARN"])["TagList"] == [{"Key": "team", "Value": "a"}]
    pids = [node["pid"] for node in aws.lab("GET", "groups")["mortal"]["nodes"]]
    aws.order({"op": "DeleteReplicationGroup", "delay": 2})
    aws.ec.delete_replication_group(ReplicationGroupId="mortal", FinalSnapshotIdentifier="last-words")
    refused(lambda: aws.ec.delete_replication_group(ReplicationGroupId="mortal"), "InvalidReplicationGroupState")
    aws.ec.get_waiter("replication_group_deleted").wait(ReplicationGroupId="mortal", WaiterConfig={"Delay": 1})
    refused(lambda: aws.group("mortal"), "ReplicationGroupNotFoundFault", 404)
    assert not any(map(is_running, pids))
    assert aws.snapshot_status("last-words") == "available"
    aws.create("reborn", SnapshotName="last-words")
    aws.wait_group("reborn")
    assert aws.node("reborn").get("a") == b"b"
    messages = [event["Message"] for event in aws.ec.describe_events(SourceIdentifier="mortal")["Events"]]
    assert messages == ["Replication group mortal created", "Replication group mortal deleted"]


def test_a_group_is_modified(aws: Account) -> None:
    aws.create("changing", NumCacheClusters=2)
    aws.wait_group("changing")
    change = {
        "ReplicationGroupDescription": "new",
        "SnapshotRetentionLimit": 3,
        "SnapshottingClusterId": "changing-001",
    }
    asked = aws.ec.modify_replication_group(ReplicationGroupId="changing", ApplyImmediately=True, **change)
    assert asked["ReplicationGroup"]["Status"] == "modifying"
    group = aws.wait_group("changing")
    assert (group["Description"], group["SnapshotRetentionLimit"]) == ("new", 3)
    aws.take("of-primary", ReplicationGroupId="changing")
    shown = aws.ec.describe_snapshots(SnapshotName="of-primary")["Snapshots"][0]
    assert [node["CacheClusterId"] for node in shown["NodeSnapshots"]] == ["changing-001"]
    for change in ({"AuthToken": "0123456789abcdef"}, {"SnapshottingClusterId": f"{SOURCE}-001"}):
        aws.wait_group("changing")
        refused(
            lambda change=change: aws.ec.modify_replication_group(ReplicationGroupId="changing", **change),
            "InvalidParameterValue",
        )


def test_what_elasticache_forbids_is_forbidden(aws: Account) -> None:
    for command in (
        "BGSAVE",
        "CONFIG GET *",
        "DEBUG SLEEP 0",
        "REPLICAOF NO ONE",
        "SAVE",
        "ACL SETUSER x",
        "CLUSTER MEET a 1",
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            aws.node().execute_command(*command.split())
    assert aws.admin().config_get("databases") == {"databases": "16"}
    aws.node(db=15).swapdb(13, 14)


def test_the_timestamp_comes_back(aws: Account) -> None:
    aws.create("ticking")
    aws.wait_group("ticking")
    aws.node("ticking").delete(TIMESTAMP_KEY)
    wait_for(lambda: aws.node("ticking").exists(TIMESTAMP_KEY), "the key that ElastiCache writes")


def test_encryption_in_transit_and_auth_are_enforced(aws: Account) -> None:
    token = "a-token-of-sixteen-or-more"
    aws.ensure_snapshot()
    aws.create("closed", NumCacheClusters=2, TransitEncryptionEnabled=True, AuthToken=token, SnapshotName="kept")
    group = aws.wait_group("closed")
    assert group["TransitEncryptionEnabled"] and group["AuthTokenEnabled"]
    tls = {"ssl": True, "ssl_ca_certs": aws.info["ca_certs"]}
    assert aws.node("closed", 1, password=token, **tls).get(b"") == b"the empty key"
    with pytest.raises(redis.AuthenticationError):
        aws.node("closed", **tls).ping()
    with pytest.raises(redis.ConnectionError):
        aws.node("closed").ping()
    aws.take("closed-too", ReplicationGroupId="closed")
    assert prove(aws.info, SOURCE, 1, "closed", 1)["equal"]
    call = next(call for call in aws.lab("GET", "calls") if call["parameters"].get("ReplicationGroupId") == "closed")
    assert call["parameters"]["AuthToken"] == "***"


def test_a_user_group_says_who_logs_in(aws: Account) -> None:
    password = "a-password-of-more-than-16"
    for name, access in (("default", "off +@all"), ("reader", "on ~app:* +@read")):
        aws.ec.create_user(UserId=f"u-{name}", UserName=name, Engine="redis", AccessString=access, Passwords=[password])
    users = {"Engine": "redis", "UserIds": ["u-reader"]}
    refused(lambda: aws.ec.create_user_group(UserGroupId="team", **users), "DefaultUserRequired")
    users["UserIds"] = ["u-default", "u-reader"]
    aws.ec.create_user_group(UserGroupId="team", **users)
    with_users = {"UserGroupIds": ["team"], "Engine": "redis"}
    refused(lambda: aws.create("no-tls", **with_users), "InvalidParameterCombination", text="TransitEncryption")
    aws.create("with-users", TransitEncryptionEnabled=True, **with_users)
    assert aws.wait_group("with-users")["UserGroupIds"] == ["team"]
    tls = {"ssl": True, "ssl_ca_certs": aws.info["ca_certs"], "ssl_check_hostname": False}
    reader = aws.node("with-users", username="reader", password=password, **tls)
    assert reader.get("app:1") is None
    for forbidden in (lambda: reader.set("app:1", "x"), lambda: reader.get("other"), reader.bgsave):
        with pytest.raises(redis.exceptions.NoPermissionError):
            forbidden()
    with pytest.raises(redis.AuthenticationError):
        aws.node("with-users", username="reader", password="wrong", **tls).ping()
    assert password not in json.dumps(aws.lab("GET", "calls"))


def test_data_tiering_stays_where_its_nodes_are(aws: Account) -> None:
    aws.create("tiered", CacheNodeType="cache.r6gd.xlarge", DataTieringEnabled=True)
    assert aws.wait_group("tiered")["DataTiering"] == "enabled"
    aws.take("of-tiered", CacheClusterId="tiered-001")
    export = {"TargetSnapshotName": "out-of-tiered", "TargetBucket": aws.bucket}
    refused(lambda: aws.ec.copy_snapshot(SourceSnapshotName="of-tiered", **export), "InvalidParameterCombination")
    refused(lambda: aws.create("not-tiered", SnapshotName="of-tiered"), "InvalidParameterCombination", text="r6gd")


def test_serverless_caches_have_names(aws: Account) -> None:
    aws.ec.create_serverless_cache(ServerlessCacheName="on-demand", Engine="valkey")
    assert aws.ec.describe_serverless_caches()["ServerlessCaches"][0]["ServerlessCacheName"] == "on-demand"
    refused(lambda: aws.group("on-demand"), "ReplicationGroupNotFoundFault", 404)


# Cluster mode


def test_cluster_mode_is_seeded_by_slots(aws: Account, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        sample_data.fill(server.client(), 500)
        server.client().save()
        aws.s3.upload_file(str(server.rdb), aws.bucket, "one-db.rdb")
    arn = [f"arn:aws:s3:::{aws.bucket}/one-db.rdb"]
    sharded = {"AutomaticFailoverEnabled": True, "NumNodeGroups": 2}
    refused(
        lambda: aws.create("shards", SnapshotArns=arn, **sharded),
        "InvalidParameterCombination",
        text="Slots must be provided when restoring from snapshot ARNs with cluster mode enabled",
    )
    holes = [{"Slots": "0-8000"}, {"Slots": "8002-16383"}]
    refused(
        lambda: aws.create("shards", SnapshotArns=arn, NodeGroupConfiguration=holes, **sharded), "InvalidParameterValue"
    )
    slots = [{"Slots": "0-999", "ReplicaCount": 1}, {"Slots": "1000-16383", "ReplicaCount": 1}]
    aws.create("shards", SnapshotArns=arn, NodeGroupConfiguration=slots, **sharded)
    group = aws.wait_group("shards")
    assert group["ClusterEnabled"] and "PrimaryEndpoint" not in group["NodeGroups"][0]
    assert [node_group["Slots"] for node_group in group["NodeGroups"]] == ["0-999", "1000-16383"]
    cluster = redis.RedisCluster(host="127.0.0.1", port=group["ConfigurationEndpoint"]["Port"])
    assert cluster.get(b"") == b"the empty key"
    assert _cluster_keys(cluster) == 500 + cluster.exists(TIMESTAMP_KEY)
    # Each shard is a file, a group with cluster mode disabled takes one only.
    aws.take("two-files", ReplicationGroupId="shards")
    aws.ec.copy_snapshot(SourceSnapshotName="two-files", TargetSnapshotName="two", TargetBucket=aws.bucket)
    aws.wait_snapshot("two-files")
    for key in ("two-0001.rdb", "two-0002.rdb"):
        assert aws.s3.head_object(Bucket=aws.bucket, Key=key)["ContentLength"]
    refused(lambda: aws.create("single", SnapshotName="two-files"), "InvalidParameterCombination")
    refused(lambda: aws.take("x", CacheClusterId="shards-0001-001"), "InvalidParameterCombination")
    aws.create("again", SnapshotName="two-files", **sharded)
    aws.wait_group("again")
    assert prove(aws.info, "shards", 0, "again", 0)["equal"]
    cluster.close()


def _cluster_keys(cluster: redis.RedisCluster) -> int:
    return sum(cluster.dbsize(target_nodes=node) for node in cluster.get_primaries())


def test_cluster_mode_refuses_several_databases(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.create("one-only", SnapshotName="kept", NumNodeGroups=1, ClusterMode="enabled", AutomaticFailoverEnabled=True)
    aws.wait_group("one-only", "create-failed")
    assert aws.cluster_status("one-only-0001-001") == "restore-failed"
    assert aws.snapshot_status("kept") == "available"


def test_the_source_can_be_in_cluster_mode(tmp_path: Path) -> None:
    with Lab(tmp_path, keys=300, delay=0.05, shards=2) as lab:
        group = Account(lab).group()
        assert group["ClusterEnabled"] and len(group["NodeGroups"]) == 2
        with redis.RedisCluster(host="127.0.0.1", port=group["ConfigurationEndpoint"]["Port"]) as cluster:
            assert _cluster_keys(cluster) == 300 + cluster.exists(TIMESTAMP_KEY)


# Parameter groups, subnet groups, tags


def test_a_parameter_group_says_how_many_databases(aws: Account) -> None:
    pages = aws.ec.get_paginator("describe_cache_parameters").paginate(CacheParameterGroupName="default.redis7")
    values = {found["ParameterName"]: found.get("ParameterValue") for page in pages for found in page["Parameters"]}
    assert values["databases"] == "16"
    described = aws.ec.describe_cache_parameter_groups(CacheParameterGroupName="default.redis7")
    assert described["CacheParameterGroups"][0]["CacheParameterGroupFamily"] == "redis7"
    refused(
        lambda: aws.ec.describe_cache_parameters(CacheParameterGroupName="none"), "CacheParameterGroupNotFound", 404
    )
    new = {"CacheParameterGroupName": "many", "CacheParameterGroupFamily": "redis7", "Description": "many"}
    aws.ec.create_cache_parameter_group(**new)
    refused(lambda: aws.ec.create_cache_parameter_group(**new), "CacheParameterGroupAlreadyExists")
    change = {"ParameterNameValues": [{"ParameterName": "databases", "ParameterValue": "32"}]}
    aws.ec.modify_cache_parameter_group(CacheParameterGroupName="many", **change)
    aws.create("wide", CacheParameterGroupName="many")
    aws.wait_group("wide")
    aws.node("wide", db=31).ping()
    events = {"ParameterNameValues": [{"ParameterName": "notify-keyspace-events", "ParameterValue": "KEA"}]}
    aws.ec.modify_cache_parameter_group(CacheParameterGroupName="many", **events)
    assert set(aws.admin("wide").config_get("notify-keyspace-events")["notify-keyspace-events"]) == set("AKE")
    refused(
        lambda: aws.ec.modify_cache_parameter_group(CacheParameterGroupName="many", **change),
        "InvalidCacheParameterGroupState",
    )


def test_a_subnet_group_is_made_once_and_listed(aws: Account) -> None:
    new = {"CacheSubnetGroupName": "inner", "CacheSubnetGroupDescription": "inner", "SubnetIds": ["subnet-1"]}
    aws.ec.create_cache_subnet_group(**new)
    refused(lambda: aws.ec.create_cache_subnet_group(**new), "CacheSubnetGroupAlreadyExists")
    names = [found["CacheSubnetGroupName"] for found in aws.ec.describe_cache_subnet_groups()["CacheSubnetGroups"]]
    assert names == ["default", "inner"]
    refused(lambda: aws.ec.describe_cache_subnet_groups(CacheSubnetGroupName="none"), "CacheSubnetGroupNotFoundFault")


def test_tags_are_added_removed_and_limited(aws: Account) -> None:
    arn = aws.group()["ARN"]
    aws.ec.add_tags_to_resource(ResourceName=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    assert aws.ec.remove_tags_from_resource(ResourceName=arn, TagKeys=["a"])["TagList"] == [{"Key": "b", "Value": "2"}]
    refused(lambda: aws.ec.remove_tags_from_resource(ResourceName=arn, TagKeys=["a"]), "TagNotFound", 404)
    refused(lambda: aws.ec.list_tags_for_resource(ResourceName="arn:aws:x"), "InvalidARN")
    refused(lambda: aws.ec.list_tags_for_resource(ResourceName=f"{arn}x"), "ReplicationGroupNotFoundFault", 404)
    many = [{"Key": str(number), "Value": ""} for number in range(51)]
    refused(lambda: aws.ec.add_tags_to_resource(ResourceName=arn, Tags=many), "TagQuotaPerResourceExceeded")
    refused(
        lambda: aws.ec.create_snapshot(SnapshotName="tagged", CacheClusterId=f"{SOURCE}-002", Tags=many),
        "TagQuotaPerResourceExceeded",
    )
    assert not aws.has_snapshot("tagged")
