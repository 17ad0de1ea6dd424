# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""elasticache_snapshot against the lab, whose snapshots are BGSAVEs of real servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.modules import LabModules

from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_snapshots as snapshots
from lab.buckets import CANONICAL_ID
from lab.nodes import free_port

SOURCE = "shared-redis"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(aws: LabModules) -> Run:
    """Run the module on a snapshot of the shared instance's second node, unless the test says otherwise."""

    def call(name: str, **args: Any) -> dict[str, Any]:
        return aws.run("elasticache_snapshot", name=name, **{"wait_timeout": 60, **args})

    return call


@pytest.fixture(scope="module")
def lone(aws: LabModules) -> str:
    """A replication group of one node and no data."""
    made = aws.run("elasticache_replication_group", replication_group_id="lone", node_type="cache.t4g.small")
    assert made["changed"], made
    return "lone"


@pytest.fixture(scope="module")
def sharded(aws: LabModules) -> str:
    """An empty replication group of two shards."""
    made = aws.run(
        "elasticache_replication_group",
        replication_group_id="sharded",
        node_type="cache.r7g.large",
        cluster_mode="enabled",
        num_node_groups=2,
        replicas_per_node_group=1,
        automatic_failover=True,
    )
    assert made["changed"], made
    return "sharded"


def make_bucket(aws: LabModules, name: str, policy: dict[str, Any] | None = None, region: str = "eu-central-1") -> str:
    s3 = aws.client("s3", region)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": region})
    if policy:
        s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [policy]}))
    return name


def states(snapshot: dict[str, Any]) -> tuple[str, str]:
    return snapshot["snapshot_name"], snapshot["snapshot_status"]


class TestPresent:
    def test_check_mode_says_so_and_takes_none(self, run: Run) -> None:
        result = run("checked", replication_group_id=SOURCE, _check=True)
        assert (result["changed"], result["snapshot"]) == (True, {})
        assert result["diff"] == {"before": {"state": "absent"}, "after": {"state": "present"}}
        assert run("checked", state="absent")["changed"] is False

    def test_takes_it_of_a_replica_once(self, run: Run) -> None:
        first = run("Once", replication_group_id=SOURCE, tags={"for": "test"})
        again = run("Once", replication_group_id=SOURCE, tags={"for": "test"})
        assert (first["changed"], again["changed"]) == (True, False)
        assert states(first["snapshot"]) == states(again["snapshot"]) == ("once", "available")
        source = {"replication_group_id": SOURCE, "cache_cluster_id": f"{SOURCE}-002", "role": "replica"}
        assert first["source"] == again["source"] == source
        assert first["snapshot"]["cache_cluster_id"] == f"{SOURCE}-002"
        assert "warnings" not in first

    def test_changes_tags_in_place(self, run: Run, aws: LabModules) -> None:
        arn = run("tagged", replication_group_id=SOURCE, tags={"a": "1", "b": "1"})["snapshot"]["arn"]
        checked = run("tagged", replication_group_id=SOURCE, tags={"a": "2"}, _check=True)
        changed = run("tagged", replication_group_id=SOURCE, tags={"a": "2"})
        assert checked["changed"] and changed["changed"]
        assert changed["diff"]["after"] == {"state": "present", "tags": {"a": "2"}}
        tags = aws.client("elasticache").list_tags_for_resource(ResourceName=arn)["TagList"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "2", "b": "1"}
        for changed in (True, False):
            assert run("tagged", replication_group_id=SOURCE, tags={"centre": 4711})["changed"] is changed

    def test_a_group_without_replica_is_read_at_its_primary_with_a_warning(self, run: Run, lone: str) -> None:
        result = run("of-lone", replication_group_id=lone)
        assert result["source"]["role"] == "primary"
        assert "has no replica" in json.dumps(result["warnings"])

    def test_a_group_in_cluster_mode_is_taken_whole(self, run: Run, aws: LabModules, sharded: str) -> None:
        result = run("of-sharded", replication_group_id=sharded, state="exported", bucket=aws.info["bucket"])
        assert result["source"] == {"replication_group_id": sharded, "cache_cluster_id": None, "role": None}
        assert [each["key"] for each in result["exports"]] == ["of-sharded-0001.rdb", "of-sharded-0002.rdb"]

    def test_takes_and_exports_one_of_valkey_with_a_kms_key(self, run: Run, aws: LabModules) -> None:
        group = {"replication_group_id": "of-valkey", "engine": "valkey", "node_type": "cache.t4g.small"}
        assert aws.run("elasticache_replication_group", **group)["changed"]
        key, bucket = "arn:aws:kms:eu-central-1:123456789012:key/1234", aws.info["bucket"]
        args = {"replication_group_id": "of-valkey", "kms_key_id": key, "state": "exported", "bucket": bucket}
        result = run("valkeys", **args)
        assert (result["snapshot"]["engine"], result["snapshot"]["kms_key_id"]) == ("valkey", key)
        head = aws.client("s3").get_object(Bucket=bucket, Key="valkeys-0001.rdb", Range="bytes=0-8")["Body"].read()
        assert head == b"VALKEY080"
        assert run("valkeys", **args)["changed"] is False

    def test_a_name_taken_by_another_source_is_an_error(self, run: Run, lone: str) -> None:
        assert run("taken", cache_cluster_id=f"{SOURCE}-001")["changed"]
        assert run("taken", replication_group_id=SOURCE)["changed"] is False
        for other in ({"replication_group_id": lone}, {"cache_cluster_id": f"{SOURCE}-002"}):
            result = run("taken", **other)
            assert result["failed"] and f"is of {SOURCE}-001, not of" in result["msg"]

    def test_a_source_that_is_not_there_is_an_error(self, run: Run) -> None:
        assert "no replication group nothing in eu-central-1" in run("x", replication_group_id="nothing")["msg"]
        assert "CacheCluster not found: nothing-001" in run("x", cache_cluster_id="nothing-001")["msg"]

    def test_a_source_is_needed_to_take_one(self, run: Run) -> None:
        assert "replication_group_id, cache_cluster_id" in run("x")["msg"]

    def test_a_failed_one_is_told_with_its_events_each_time(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateSnapshot", "fail": True})
        first = run("failing", replication_group_id=SOURCE)
        assert first["failed"] and "ended as failed" in first["msg"] and "state=absent" in first["msg"]
        assert "Snapshot failed for snapshot with ID 'failing'" in first["msg"]
        again = run("failing", replication_group_id=SOURCE)
        assert again["failed"] and "The snapshot failing failed" in again["msg"]
        assert run("failing", state="absent")["changed"]
        assert run("failing", replication_group_id=SOURCE)["changed"]

    def test_one_that_is_being_taken_is_waited_for(self, run: Run, aws: LabModules, tmp_path: Path) -> None:
        aws.order({"op": "CreateSnapshot", "delay": 1})
        asked = run("slow", replication_group_id=SOURCE, wait=False)
        assert states(asked["snapshot"]) == ("slow", "creating")
        waited = run("slow", replication_group_id=SOURCE, progress_file=str(tmp_path / "progress"))
        assert json.loads((tmp_path / "progress").read_text())["state"] == "done"
        assert (waited["changed"], states(waited["snapshot"])) == (False, ("slow", "available"))

    def test_one_of_another_node_than_would_be_read_now_is_told_as_that(self, run: Run) -> None:
        run("of-primary", cache_cluster_id=f"{SOURCE}-001")
        source = run("of-primary", replication_group_id=SOURCE)["source"]
        assert source == {"replication_group_id": SOURCE, "cache_cluster_id": f"{SOURCE}-001", "role": None}

    def test_a_busy_source_is_waited_for(self, run: Run, aws: LabModules) -> None:
        for code in ("InvalidReplicationGroupState", "InvalidCacheClusterState"):
            aws.order({"op": "CreateSnapshot", "code": code})
        assert run("busy", cache_cluster_id=f"{SOURCE}-001")["changed"]


class TestFaults:
    def test_throttling_and_5xx_are_tried_again(self, run: Run, aws: LabModules) -> None:
        aws.order(
            {"op": "DescribeReplicationGroups", "code": "Throttling", "times": 2},
            {"op": "CreateSnapshot", "code": "ServiceUnavailable", "status": 503},
            {"op": "CreateSnapshot", "reset": True},
            {"op": "DescribeSnapshots", "code": "InternalFailure", "status": 500},
            {"op": "DescribeSnapshots", "code": "APICallRateForCustomerExceeded", "times": 2},
        )
        assert run("retried", replication_group_id=SOURCE)["changed"]

    def test_a_lost_answer_to_create_is_no_failure(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateSnapshot", "after": True})
        result = run("echo", replication_group_id=SOURCE)
        assert (result["changed"], states(result["snapshot"])) == (True, ("echo", "available"))
        assert [call["code"] for call in aws.calls("CreateSnapshot")][-1] == "SnapshotAlreadyExistsFault"

    def test_a_lost_answer_to_delete_is_no_failure(self, run: Run, aws: LabModules) -> None:
        run("gone", replication_group_id=SOURCE)
        aws.order({"op": "DeleteSnapshot", "after": True})
        result = run("gone", state="absent")
        assert (result.get("failed"), result["changed"]) == (None, True)

    def test_an_error_is_told_with_what_was_tried(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateSnapshot", "code": "SnapshotQuotaExceededFault"})
        result = run("quota", replication_group_id=SOURCE)
        assert result["failed"] and result["error_code"] == "SnapshotQuotaExceededFault"
        assert "Could not take the snapshot quota of the replication group shared-redis" in result["msg"]

    def test_a_wrong_endpoint_is_told(self, run: Run) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        result = run("x", replication_group_id=SOURCE, endpoint_url=url, aws_config={"retries": {"max_attempts": 1}})
        assert result["failed"] and url in result["msg"] and "Check endpoint_url" in result["msg"]


class TestExported:
    @pytest.fixture
    def export(self, run: Run, aws: LabModules) -> Run:
        """Export the snapshot `base`, which the first test takes, to the lab's bucket or another."""

        def call(target: str, **args: Any) -> dict[str, Any]:
            args = {"bucket": aws.info["bucket"], "replication_group_id": SOURCE, **args}
            return run("base", state="exported", target_name=target, **args)

        return call

    def test_makes_and_exports_it_once(self, run: Run, aws: LabModules) -> None:
        bucket = aws.info["bucket"]
        args = {"replication_group_id": SOURCE, "state": "exported", "bucket": bucket, "target_name": "Out"}
        checked = run("exported", _check=True, **args)
        assert (checked["changed"], checked["exports"], checked["snapshot"]) == (True, [], {})
        first, again = run("exported", **args), run("exported", **args)
        size = aws.client("s3").head_object(Bucket=bucket, Key="out-0001.rdb")["ContentLength"]
        assert first["exports"] == again["exports"] == [{"bucket": bucket, "key": "out-0001.rdb", "size": size}]
        assert (first["changed"], again["changed"]) == (True, False)
        assert again["diff"] == {"before": {"state": "exported"}, "after": {"state": "exported"}}

    def test_a_snapshot_that_is_there_needs_no_source(self, run: Run, export: Run) -> None:
        export("a-source")
        assert export("no-source", replication_group_id=None)["exports"]
        missing = run("nothing", state="exported", bucket="keyferry-exports")
        assert missing["failed"] and "There is no snapshot nothing" in missing["msg"]

    def test_an_export_under_way_is_waited_for(self, export: Run, aws: LabModules) -> None:
        export("a-source")
        aws.order({"op": "CopySnapshot", "delay": 1})
        asked = export("under-way", wait=False)
        assert (asked["changed"], asked["exports"]) == (True, [])
        waited = export("under-way")
        assert (waited["changed"], len(waited["exports"])) == (False, 1)

    def test_without_waiting_each_run_does_the_next_step(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateSnapshot", "delay": 6})
        args = {"replication_group_id": SOURCE, "state": "exported", "bucket": aws.info["bucket"], "wait": False}
        begun, busy = run("by-steps", **args), run("by-steps", **args)
        assert [(each["changed"], each["exports"]) for each in (begun, busy)] == [(True, []), (False, [])]
        run("by-steps", replication_group_id=SOURCE)
        assert run("by-steps", **args)["changed"]

    def test_the_objects_may_be_seen_a_while_after_a_long_export(
        self, export: Run, aws: LabModules, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export("a-source")
        monkeypatch.setattr(snapshots, "EXPORT_GRACE", 5)
        aws.order({"op": "CopySnapshot", "delay": 6})
        found, looks = snapshots.Export.found, []

        def found_late(self: snapshots.Export, snapshot: dict[str, Any]) -> Any:
            objects = found(self, snapshot)
            looks.extend([1] if objects else [])
            return objects if len(looks) > 2 else None

        monkeypatch.setattr(snapshots.Export, "found", found_late)
        assert len(export("seen-late")["exports"]) == 1

    def test_an_export_that_brings_nothing_is_an_error(self, export: Run, aws: LabModules) -> None:
        export("a-source")
        aws.order({"op": "CopySnapshot", "missing": True})
        result = export("void", wait_timeout=4)
        assert result["failed"] and "void-NNNN.rdb is not whole in the bucket" in result["msg"]

    @pytest.mark.parametrize("delay", [0, 1])
    def test_a_lost_answer_is_no_failure(self, export: Run, aws: LabModules, delay: int) -> None:
        export("a-source")
        aws.order({"op": "CopySnapshot", "after": True, "delay": delay})
        result = export(f"echo-{delay}")
        assert "failed" not in result and len(result["exports"]) == 1

    def test_a_stuck_one_ends_with_the_deadline(self, run: Run, aws: LabModules) -> None:
        run("stuck", replication_group_id=SOURCE)
        aws.order({"op": "CopySnapshot", "stuck": True})
        result = run("stuck", state="exported", bucket=aws.info["bucket"], wait_timeout=1)
        assert result["failed"] and "stuck is still exporting after 1 seconds" in result["msg"]
        assert result["status"] == "exporting"

    def test_objects_of_an_older_snapshot_are_not_taken_for_its_own(self, run: Run, aws: LabModules) -> None:
        args = {"state": "exported", "bucket": aws.info["bucket"], "target_name": "shared-name"}
        aws.client("s3").put_object(Bucket=aws.info["bucket"], Key="shared-name-0001.rdb", Body=b"REDIS")
        aws.order({"op": "CreateSnapshot", "delay": 2.2})
        result = run("newer", replication_group_id=SOURCE, **args)
        assert result["failed"] and "holds shared-name-0001.rdb, which the snapshot newer" in result["msg"]

    def test_a_bucket_that_is_not_there_is_told_before_the_snapshot_is_taken(self, run: Run) -> None:
        result = run("no-bucket", replication_group_id=SOURCE, state="exported", bucket="there-is-none")
        assert result["failed"] and "The bucket there-is-none does not exist" in result["msg"]
        assert run("no-bucket", state="absent")["changed"] is False

    def test_a_bucket_of_another_region_is_told(self, export: Run, aws: LabModules) -> None:
        result = export("far", bucket=make_bucket(aws, "far-away", region="us-west-2"))
        assert result["failed"] and "is in us-west-2" in result["msg"]

    def test_a_bucket_that_lacks_the_policy_is_told_with_the_policy(self, export: Run, aws: LabModules) -> None:
        bucket = make_bucket(aws, "closed")
        result = export("closed", bucket=bucket)
        assert result["failed"] and "Add this statement to the bucket policy" in result["msg"]
        statement = result["policy_statement"]
        assert json.dumps(statement, indent=2) in result["msg"]
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        aws.client("s3").put_bucket_policy(Bucket=bucket, Policy=policy)
        assert export("closed", bucket=bucket)["exports"]

    def test_a_policy_that_lacks_one_action_is_told(self, export: Run, aws: LabModules) -> None:
        principal = {"Service": "eu-central-1.elasticache-snapshot.amazonaws.com"}
        actions = ["s3:GetObject", "s3:List*", "s3:GetBucketAcl"]
        resources = ["arn:aws:s3:::read-only", "arn:aws:s3:::read-only/*"]
        policy = {"Effect": "Allow", "Principal": principal, "Action": actions, "Resource": resources}
        result = export("read-only", bucket=make_bucket(aws, "read-only", policy))
        assert result["failed"] and "does not give s3:PutObject to" in result["msg"]

    def test_an_acl_grant_is_as_good_as_a_policy(self, export: Run, aws: LabModules) -> None:
        bucket = make_bucket(aws, "by-acl")
        aws.client("s3").put_bucket_acl(Bucket=bucket, GrantFullControl=f"id={CANONICAL_ID}")
        assert export("by-acl", bucket=bucket)["exports"]

    def test_a_policy_that_may_not_be_read_leaves_it_to_aws(self, export: Run, aws: LabModules) -> None:
        export("a-source")
        bucket = make_bucket(aws, "unreadable")
        aws.order({"op": f"s3:GET /{bucket}", "code": "AccessDenied", "status": 403})
        result = export("unreadable", bucket=bucket)
        assert result["failed"] and "ElastiCache has not been granted READ permissions" in result["msg"]

    def test_a_bucket_that_may_not_be_listed_is_told(self, export: Run, aws: LabModules) -> None:
        export("a-source")
        bucket = make_bucket(aws, "unlisted")
        aws.order({"op": f"s3:GET /{bucket}", "code": "AccessDenied", "status": 403, "times": 0})
        result = export("unlisted", bucket=bucket)
        assert result["failed"] and "Could not list the objects of the bucket unlisted" in result["msg"]

    def test_a_bucket_of_another_account_is_told(self, export: Run, aws: LabModules) -> None:
        aws.order({"op": "s3:HEAD /keyferry-exports", "code": "AccessDenied", "status": 403, "times": 0})
        result = export("foreign")
        assert result["failed"] and "belongs to another account" in result["msg"]

    def test_a_bucket_with_a_kms_key_is_warned_of(self, export: Run, aws: LabModules) -> None:
        bucket = make_bucket(aws, "with-kms")
        rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
        s3 = aws.client("s3")
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
        s3.put_bucket_acl(Bucket=bucket, GrantFullControl=f"id={CANONICAL_ID}")
        result = export("with-kms", bucket=bucket, _check=True)
        assert "encrypts with a KMS key by default" in json.dumps(result["warnings"])


class TestAbsent:
    def test_one_of_another_source_or_without_a_tag_stays(self, run: Run, lone: str) -> None:
        run("theirs", cache_cluster_id=f"{SOURCE}-001", tags={"a": "1"})
        for given, why in (
            ({"replication_group_id": lone}, f"is of {SOURCE}-001, not of {lone}"),
            ({"cache_cluster_id": f"{SOURCE}-002"}, f"is of {SOURCE}-001, not of {SOURCE}-002"),
            ({"replication_group_id": SOURCE, "tags": {"a": "2", "b": "1"}}, "lacks the tags a=2, b=1"),
        ):
            result = run("theirs", state="absent", **given)
            assert result["failed"] and result["kept"], result
            assert result["msg"] == f"The snapshot theirs {why}, so it is not deleted."
        assert run("theirs", state="absent", replication_group_id=SOURCE, tags={"a": "1"})["changed"]

    def test_a_source_that_is_gone_is_known_by_its_nodes(self, run: Run, aws: LabModules) -> None:
        group = {"replication_group_id": "leaving", "node_type": "cache.t4g.small"}
        assert aws.run("elasticache_replication_group", **group)["changed"]
        assert run("of-leaving", replication_group_id="leaving")["changed"]
        assert aws.run("elasticache_replication_group", replication_group_id="leaving", state="absent")["changed"]
        assert run("of-leaving", state="absent", replication_group_id="leav")["kept"]
        assert run("of-leaving", state="absent", replication_group_id="leaving")["changed"]

    def test_deletes_it_once(self, run: Run, lone: str) -> None:
        run("brief", replication_group_id=lone)
        checked = run("brief", state="absent", _check=True)
        assert (checked["changed"], states(checked["snapshot"])) == (True, ("brief", "available"))
        assert run("brief", state="absent")["changed"] is True
        assert run("brief", state="absent")["changed"] is False

    def test_one_that_is_busy_is_deleted_when_it_is_not(self, run: Run, aws: LabModules, lone: str) -> None:
        run("occupied", replication_group_id=lone, wait=False)
        aws.order({"op": "DeleteSnapshot", "code": "InvalidSnapshotState", "times": 2})
        assert run("occupied", state="absent")["changed"]

    def test_one_that_stays_busy_is_an_error(self, run: Run, aws: LabModules, lone: str) -> None:
        run("kept", replication_group_id=lone)
        aws.order({"op": "DeleteSnapshot", "code": "InvalidSnapshotState", "times": 0})
        result = run("kept", state="absent", wait_timeout=1)
        assert result["failed"] and "Could not delete the snapshot kept" in result["msg"]
