# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided before AWS is asked: policies, snapshots, slots, requests, drift and seeds."""

from __future__ import annotations

from typing import Any, ClassVar

import botocore.session
import pytest
from botocore.validate import ParamValidator

from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_buckets as buckets
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_groups as groups
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_snapshots as snapshots
from ansible_collections.keyferry.redis.plugins.module_utils.aws import Deadline
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

REGION = "eu-central-1"
BUCKET = "arn:aws:s3:::exports"
PRINCIPAL = {"Service": f"{REGION}.elasticache-snapshot.amazonaws.com"}


def missing(*statements: dict[str, Any]) -> list[str]:
    return buckets.missing_actions(
        {"Statement": list(statements)}, BUCKET, "x-0001.rdb", REGION, buckets.EXPORT_ACTIONS
    )


ALL_ACTIONS = sorted([*buckets.EXPORT_ACTIONS[0], *buckets.EXPORT_ACTIONS[1]])
ANYTHING = {"Effect": "Allow", "Principal": PRINCIPAL, "Action": "s3:*", "Resource": [BUCKET, f"{BUCKET}/*"]}


class TestBucketPolicy:
    def test_the_statement_that_is_advised_is_enough(self) -> None:
        assert missing(buckets.statement(BUCKET, REGION, buckets.EXPORT_ACTIONS)) == []

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"Principal": "*"},
            {"Principal": {"AWS": "*"}},
            {"Principal": {"Service": ["ec2.amazonaws.com", PRINCIPAL["Service"]]}},
            {"Action": ["S3:Get*", "s3:Put?bject", "s3:List*"]},
            {"Condition": {"StringEquals": {"aws:SourceAccount": "123456789012"}}},
        ],
    )
    def test_what_may_be_enough_is_let_through(self, change: dict[str, Any]) -> None:
        assert missing({**ANYTHING, **change}) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"Effect": "Deny"},
            {"Principal": {"Service": "us-east-1.elasticache-snapshot.amazonaws.com"}},
            {"Principal": {"AWS": "arn:aws:iam::123456789012:root"}},
            {"Resource": "arn:aws:s3:::other/*"},
        ],
    )
    def test_what_surely_is_not_enough_lacks_all(self, change: dict[str, Any]) -> None:
        assert missing({**ANYTHING, **change}) == ALL_ACTIONS

    def test_each_action_that_lacks_is_named(self) -> None:
        assert missing({**ANYTHING, "Resource": BUCKET}) == sorted(buckets.EXPORT_ACTIONS[1])
        assert missing({**ANYTHING, "Action": ["s3:PutObject", "s3:List*"]}) == ["s3:GetBucketAcl", "s3:GetObject"]

    def test_a_policy_of_a_single_statement_needs_no_list(self) -> None:
        assert buckets.missing_actions({"Statement": ANYTHING}, BUCKET, "k", REGION, buckets.SEED_ACTIONS) == []

    def test_no_policy_gives_nothing(self) -> None:
        assert buckets.missing_actions({}, BUCKET, "k", REGION, buckets.EXPORT_ACTIONS) == ALL_ACTIONS


class TestSnapshotSource:
    GROUP = snapshots.SnapshotSource(
        "the replication group shared", {}, {}, "shared", frozenset(["shared-001", "shared-002"])
    )

    @pytest.mark.parametrize(
        "snapshot",
        [{"ReplicationGroupId": "shared"}, {"CacheClusterId": "shared-001"}, {"CacheClusterId": "shared-002"}],
    )
    def test_a_snapshot_of_the_group_or_a_node_of_it_is_its_own(self, snapshot: dict[str, Any]) -> None:
        assert self.GROUP.made(snapshot)

    @pytest.mark.parametrize(
        "snapshot",
        [{"ReplicationGroupId": "other"}, {"CacheClusterId": "shared-0011"}, {"CacheClusterId": "other-001"}],
    )
    def test_a_snapshot_of_another_is_not(self, snapshot: dict[str, Any]) -> None:
        assert not self.GROUP.made(snapshot)

    def test_a_cache_cluster_is_not_taken_for_a_group(self) -> None:
        assert not snapshots.source_of_cache_cluster("one").made({"ReplicationGroupId": "one"})


class TestSlots:
    @pytest.mark.parametrize("shards", [1, 2, 3, 7, 90])
    def test_each_slot_belongs_to_one_shard(self, shards: int) -> None:
        bounds = [tuple(map(int, each["Slots"].split("-"))) for each in groups.node_groups(shards, 0)]
        covered = [slot for first, last in bounds for slot in range(first, last + 1)]
        assert covered == list(range(groups.SLOTS))

    def test_shards_are_numbered_as_aws_does(self) -> None:
        assert groups.node_groups(2, 1) == [
            {"NodeGroupId": "0001", "Slots": "0-8191", "ReplicaCount": 1},
            {"NodeGroupId": "0002", "Slots": "8192-16383", "ReplicaCount": 1},
        ]


class TestCreateRequest:
    def test_cluster_mode_disabled_counts_its_nodes(self) -> None:
        wanted = {"node_type": "cache.r7g.large", "replicas_per_node_group": 2, "multi_az": False, "engine": None}
        assert groups.create_request("g", wanted, {"a": "b"}) == {
            "ReplicationGroupId": "g",
            "ReplicationGroupDescription": "g",
            "CacheNodeType": "cache.r7g.large",
            "MultiAZEnabled": False,
            "NumCacheClusters": 3,
            "Tags": [{"Key": "a", "Value": "b"}],
        }

    def test_cluster_mode_enabled_counts_shards(self) -> None:
        wanted = {"node_type": "t", "cluster_mode": "enabled", "num_node_groups": 3}
        request = groups.create_request("g", wanted, {})
        assert (request["NumNodeGroups"], request["ReplicasPerNodeGroup"]) == (3, 0)

    def test_cluster_mode_enabled_from_s3_says_the_slots(self) -> None:
        wanted = {"node_type": "t", "cluster_mode": "enabled", "num_node_groups": 2, "snapshot_arns": ["arn"]}
        request = groups.create_request("g", wanted, {})
        assert request["NodeGroupConfiguration"] == groups.node_groups(2, 0)
        assert "NumNodeGroups" not in request

    @pytest.mark.parametrize(
        ("wanted", "told"), [({}, "node_type"), ({"node_type": "t", "num_node_groups": 2}, "cluster_mode=disabled")]
    )
    def test_what_cannot_be_is_told_before_aws(self, wanted: dict[str, Any], told: str) -> None:
        with pytest.raises(KeyferryError, match=told):
            groups.create_request("g", wanted, {})

    @pytest.mark.parametrize(
        ("told", "asked"),
        [("7.1.0", "7.1"), ("7.1", "7.1"), ("6.2.6", "6.2"), ("6.x", "6.x"), ("5.0.6", "5.0.6"), ("10.0.1", "10.0")],
    )
    def test_a_version_as_aws_tells_it_is_asked_as_aws_wants_it(self, told: str, asked: str) -> None:
        assert groups.create_request("g", {"node_type": "t", "engine_version": told}, {})["EngineVersion"] == asked

    def test_every_option_reaches_a_member_of_botocores_own_model(self) -> None:
        texts = {option: "x" for option in groups.OPTIONS}
        flags = {
            option: True for option in ("automatic_failover", "multi_az", "transit_encryption", "at_rest_encryption")
        }
        lists = {option: ["x"] for option in ("snapshot_arns", "security_group_ids", "user_group_ids")}
        numbers = {"port": 1, "snapshot_retention_limit": 1, "num_node_groups": 2, "replicas_per_node_group": 1}
        wanted = {**texts, **flags, **lists, **numbers, "cluster_mode": "enabled"}
        request = groups.create_request("g", wanted, {"a": "b"})
        model = botocore.session.get_session().get_service_model("elasticache")
        shape = model.operation_model("CreateReplicationGroup").input_shape
        assert not ParamValidator().validate(request, shape).has_errors()
        assert set(groups.REQUEST_MEMBERS.values()) <= set(request)


class TestDataTiering:
    SNAPSHOT: ClassVar = {"SnapshotName": "tiered", "SnapshotStatus": "available", "DataTiering": "enabled"}

    class Api:
        def snapshot(self, name: str) -> dict[str, Any]:
            return TestDataTiering.SNAPSHOT

    def test_cannot_be_exported(self) -> None:
        with pytest.raises(KeyferryError, match="data tiering, which AWS cannot export"):
            snapshots.require_exportable(self.SNAPSHOT)
        snapshots.require_exportable({**self.SNAPSHOT, "DataTiering": "disabled"})

    def test_is_restored_only_to_nodes_that_have_it(self) -> None:
        groups.require_snapshot(self.Api(), "tiered", "cache.r6gd.xlarge")
        with pytest.raises(KeyferryError, match=r"cache\.r6gd, not cache\.r7g\.large"):
            groups.require_snapshot(self.Api(), "tiered", "cache.r7g.large")


class TestDrift:
    def test_is_only_what_was_asked_and_differs(self) -> None:
        wanted = {"engine": "redis", "node_type": "cache.r7g.large", "port": None, "multi_az": False}
        found = {"engine": "redis", "node_type": "cache.r7g.xlarge", "port": 6379, "multi_az": True}
        assert groups.drift(wanted, found) == {
            "node_type": {"asked": "cache.r7g.large", "found": "cache.r7g.xlarge"},
            "multi_az": {"asked": False, "found": True},
        }

    @pytest.mark.parametrize(
        ("option", "asked", "found"),
        [
            ("engine_version", "7.1", "7.1.0"),
            ("engine_version", "6.x", "6.2.6"),
            ("engine_version", "7.1.0", "7.1.0"),
            ("security_group_ids", ["sg-2", "sg-1"], ["sg-1", "sg-2"]),
            ("kms_key_id", "1234", "arn:aws:kms:eu-central-1:123456789012:key/1234"),
            ("kms_key_id", "alias/night", "arn:aws:kms:eu-central-1:123456789012:key/1234"),
            ("maintenance_window", "Sun:05:00-Sun:06:00", "sun:05:00-sun:06:00"),
            ("subnet_group_name", "Private", "private"),
            ("parameter_group_name", "any", None),
        ],
    )
    def test_what_means_the_same_is_no_drift(self, option: str, asked: Any, found: Any) -> None:
        assert groups.drift({option: asked}, {option: found}) == {}

    def test_a_version_is_not_a_prefix_of_another_number(self) -> None:
        assert groups.drift({"engine_version": "7.1"}, {"engine_version": "7.10.0"})

    def test_seeds_and_secrets_are_not_compared(self) -> None:
        wanted = {"auth_token": "secret", "snapshot_name": "s", "snapshot_arns": ["a"]}
        assert groups.drift(wanted, {key: "other" for key in wanted}) == {}

    def test_every_option_is_told_by_the_facts(self) -> None:
        found = groups.facts({"ReplicationGroupId": "g", "Status": "creating"}, {})
        assert set(groups.COMPARED_OPTIONS) <= set(found)


class TestSeed:
    def test_is_readable_where_a_tag_can_hold_it(self) -> None:
        assert groups.seed_of({"snapshot_name": "shared-1"}) == "shared-1"
        assert groups.seed_of({"snapshot_arns": ["arn:aws:s3:::b/2.rdb", "arn:aws:s3:::b/1.rdb"]}) == (
            "arn:aws:s3:::b/1.rdb arn:aws:s3:::b/2.rdb"
        )
        assert groups.seed_of({}) is None

    @pytest.mark.parametrize("key", ["a" * 300, "a(1).rdb"])
    def test_is_a_hash_where_not(self, key: str) -> None:
        assert str(groups.seed_of({"snapshot_arns": [f"arn:aws:s3:::b/{key}"]})).startswith("sha256:")


class TestDeadline:
    def test_pauses_are_short_at_first_and_end_with_the_deadline(self) -> None:
        assert 0.2 < Deadline(3600).pause() < 0.3
        assert Deadline(0).pause() == pytest.approx(0.05)
        assert Deadline(0).passed
        assert not Deadline(3600).passed
