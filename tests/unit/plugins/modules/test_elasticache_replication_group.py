# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""elasticache_replication_group and its _info against the lab, whose groups are real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from support.modules import LabModules

from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache
from lab.nodes import RedisServer

SOURCE = "shared-redis"
BUCKET = "keyferry-exports"
SEED = f"arn:aws:s3:::{BUCKET}/seed.rdb"
TIMESTAMP_KEY = b"ElastiCacheMasterReplicationTimestamp"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(aws: LabModules) -> Run:
    """Run the module; a group that it makes is of one small node, unless the test says otherwise."""

    def call(name: str, **args: Any) -> dict[str, Any]:
        options = {"node_type": "cache.t4g.small", "wait_timeout": 60}
        return aws.run("elasticache_replication_group", replication_group_id=name, **{**options, **args})

    return call


@pytest.fixture(scope="module", autouse=True)
def seed(aws: LabModules, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An RDB of 100 keys in DB 0, in the bucket as seed.rdb; beside it broken.rdb and two-databases.rdb."""
    with RedisServer(tmp_path_factory.mktemp("seed"), "redis") as server:
        server.client().mset({f"key:{number}": number for number in range(100)})
        server.client().save()
        rdb = server.rdb.read_bytes()
        server.client(db=3).set("elsewhere", 1)
        server.client().save()
        several = server.rdb.read_bytes()
    s3 = aws.client("s3")
    s3.put_object(Bucket=BUCKET, Key="seed.rdb", Body=rdb)
    s3.put_object(Bucket=BUCKET, Key="broken.rdb", Body=rdb[: len(rdb) // 2])
    s3.put_object(Bucket=BUCKET, Key="two-databases.rdb", Body=several)
    return rdb


@pytest.fixture(scope="module")
def made(aws: LabModules) -> str:
    """A group made from the seed; read by the tests, changed by none but in its tags."""
    result = aws.run(
        "elasticache_replication_group",
        replication_group_id="made",
        description="Made for tests",
        snapshot_arns=[SEED],
        engine="redis",
        engine_version="7.1",
        node_type="cache.r7g.large",
        replicas_per_node_group=1,
        automatic_failover=True,
        multi_az=True,
        security_group_ids=["sg-2", "sg-1"],
        parameter_group_name="default.redis7",
        subnet_group_name="default",
        snapshot_retention_limit=3,
        snapshot_window="01:00-02:00",
        tags={"a": "1"},
    )
    assert result["changed"], result
    return "made"


def keys_at(endpoint: dict[str, Any], **options: Any) -> set[bytes]:
    client = redis.Redis(endpoint["address"], endpoint["port"], **options)
    return {key for key in client.scan_iter(count=1000) if key != TIMESTAMP_KEY}


class TestPresent:
    def test_check_mode_says_so_and_makes_none(self, run: Run, aws: LabModules) -> None:
        result = run("checked", snapshot_arns=[SEED], _check=True)
        assert (result["changed"], result["replication_group"]) == (True, {})
        assert result["diff"] == {"before": {"state": "absent"}, "after": {"state": "present"}}
        assert not aws.run("elasticache_replication_group_info", replication_group_id="checked")["replication_groups"]

    def test_makes_an_empty_one_once(self, run: Run) -> None:
        first, again = run("Empty"), run("empty")
        assert (first["changed"], again["changed"], again["drift"]) == (True, False, {})
        assert first["replication_group"]["status"] == "available"
        assert keys_at(first["endpoint"]) == set()

    def test_makes_one_from_an_rdb_in_s3_once(self, run: Run, made: str) -> None:
        again = run(made, snapshot_arns=[SEED], node_type="cache.r7g.large")
        assert (again["changed"], again["drift"]) == (False, {})
        assert len(keys_at(again["endpoint"])) == len(keys_at(again["reader_endpoint"])) == 100
        assert again["engine_version"] == "7.1.0"
        group = again["replication_group"]
        assert [node["role"] for node in group["nodes"]] == ["primary", "replica"]
        assert group["description"] == "Made for tests"

    def test_makes_one_from_a_snapshot_that_is_still_taken(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateSnapshot", "delay": 1})
        args = {"name": "for-restore", "replication_group_id": SOURCE}
        aws.run("elasticache_snapshot", wait=False, **args)
        first = run("restored", snapshot_name="For-Restore")
        assert first["changed"] and len(keys_at(first["endpoint"], db=1)) > 100
        assert run("restored", snapshot_name="for-restore")["changed"] is False

    def test_one_that_is_being_made_is_waited_for(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateReplicationGroup", "delay": 1})
        assert run("slow", wait=False)["changed"]
        waited = run("slow")
        assert (waited["changed"], waited["replication_group"]["status"]) == (False, "available")

    def test_a_stuck_one_ends_with_the_deadline(self, run: Run, aws: LabModules, tmp_path: Path) -> None:
        aws.order({"op": "CreateReplicationGroup", "stuck": True})
        result = run("stuck", wait_timeout=1, progress_file=str(tmp_path / "progress"))
        assert result["failed"] and "stuck is still creating after 1 seconds" in result["msg"]
        told = json.loads((tmp_path / "progress").read_text())
        assert (told["state"], told["total"]) == ("failed", None) and told["elapsed"] >= 1

    def test_makes_one_with_tls_and_token(self, run: Run, aws: LabModules) -> None:
        token = "a-token-of-more-than-16"
        args = {"transit_encryption": True, "transit_encryption_mode": "required", "auth_token": token}
        result = run("with-tls", **args)
        assert result["changed"] and token not in json.dumps(result)
        options = {"password": token, "ssl": True, "ssl_ca_certs": aws.info["ca_certs"], "ssl_check_hostname": False}
        assert keys_at(result["endpoint"], **options) == set()
        group = result["replication_group"]
        assert (group["transit_encryption"], group["auth_token_enabled"]) == (True, True)
        assert run("with-tls", **args)["drift"] == {}

    def test_a_token_without_tls_is_refused_by_aws(self, run: Run) -> None:
        result = run("no-tls", auth_token="a-token-of-more-than-16")
        assert result["failed"] and result["error_code"] == "InvalidParameterCombination"
        assert "a-token" not in json.dumps(result)

    def test_a_user_group_serves_instead_of_a_token(self, run: Run, aws: LabModules) -> None:
        elasticache = aws.client("elasticache")
        login = {"Passwords": ["a-token-of-more-than-16"], "AccessString": "on ~* +@all"}
        elasticache.create_user(UserId="everyone", UserName="default", Engine="redis", **login)
        elasticache.create_user_group(UserGroupId="team", Engine="redis", UserIds=["everyone"])
        args = {"engine": "redis", "transit_encryption": True, "user_group_ids": ["team"]}
        result = run("with-users", **args)
        assert (result["changed"], result["replication_group"]["user_group_ids"]) == (True, ["team"])
        assert run("with-users", **args)["drift"] == {}
        assert run("with-users", user_group_ids=["other"])["drift"]["user_group_ids"]["found"] == ["team"]
        missing = run("without", **{**args, "user_group_ids": ["none"]})
        assert missing["failed"] and missing["error_code"] == "UserGroupNotFound"

    def test_nodes_with_data_tiering_have_it_on(self, run: Run) -> None:
        result = run("tiered", node_type="cache.r6gd.xlarge")
        assert (result["changed"], result["replication_group"]["data_tiering"]) == (True, True)

    def test_makes_one_of_valkey_with_all_that_is_said_at_creation(self, run: Run) -> None:
        args = {
            "engine": "valkey",
            "engine_version": "8.1",
            "at_rest_encryption": True,
            "kms_key_id": "arn:aws:kms:eu-central-1:123456789012:key/1234",
            "replicas_per_node_group": 2,
            "automatic_failover": True,
            "multi_az": True,
            "maintenance_window": "mon:01:00-mon:02:00",
            "snapshot_window": "03:30-04:30",
            "snapshot_retention_limit": 2,
            "security_group_ids": ["sg-1"],
            "subnet_group_name": "default",
        }
        assert run("with-valkey", **args)["changed"]
        assert run("with-valkey", **args)["drift"] == {}

    def test_a_parameter_group_with_too_few_databases_is_told_before_aws(self, run: Run, aws: LabModules) -> None:
        elasticache = aws.client("elasticache")
        for name, databases in (("few", "2"), ("many", "32")):
            family = {"CacheParameterGroupFamily": "redis7", "Description": name}
            elasticache.create_cache_parameter_group(CacheParameterGroupName=name, **family)
            values = [{"ParameterName": "databases", "ParameterValue": databases}]
            elasticache.modify_cache_parameter_group(CacheParameterGroupName=name, ParameterNameValues=values)
        before = len(aws.calls("CreateReplicationGroup"))
        for args, told in (
            ({"parameter_group_name": "few", "databases": 3}, "parameter group few has databases=2"),
            ({"databases": 17}, "that AWS takes by default has databases=16"),
            ({"parameter_group_name": "default.redis7.cluster.on", "databases": 2}, "database 0 alone"),
        ):
            result = run("too-few", **args)
            assert result["failed"] and told in result["msg"], result
        assert len(aws.calls("CreateReplicationGroup")) == before
        assert run("enough", engine="redis", parameter_group_name="many", databases=17)["changed"]

    def test_cluster_mode_from_an_rdb_spreads_its_keys(self, run: Run) -> None:
        args = {
            "cluster_mode": "enabled",
            "num_node_groups": 2,
            "replicas_per_node_group": 1,
            "automatic_failover": True,
            "snapshot_arns": [SEED],
        }
        result = run("cluster", **args)
        assert result["changed"] and "reader_endpoint" not in result
        group = result["replication_group"]
        assert {node["slots"] for node in group["nodes"]} == {"0-8191", "8192-16383"}
        client = redis.RedisCluster(result["endpoint"]["address"], result["endpoint"]["port"])
        assert len(set(client.scan_iter(target_nodes="primaries")) - {TIMESTAMP_KEY}) == 100
        assert run("cluster", **args)["drift"] == {}


class TestExisting:
    def test_drift_is_told_and_left(self, run: Run, made: str) -> None:
        result = run(made, engine_version="7.0", node_type="cache.r7g.xlarge", multi_az=False)
        assert result["changed"] is False
        assert result["drift"] == {
            "engine_version": {"asked": "7.0", "found": "7.1.0"},
            "node_type": {"asked": "cache.r7g.xlarge", "found": "cache.r7g.large"},
            "multi_az": {"asked": False, "found": True},
        }
        assert result["diff"]["before"]["node_type"] == "cache.r7g.large"
        assert result["diff"]["after"]["node_type"] == "cache.r7g.xlarge"
        assert "node_type=cache.r7g.large, not cache.r7g.xlarge as asked" in json.dumps(result["warnings"])

    def test_what_was_asked_when_it_was_made_is_no_drift(self, run: Run, made: str) -> None:
        asked = {
            "description": "Made for tests",
            "engine": "redis",
            "node_type": "cache.r7g.large",
            "cluster_mode": "disabled",
            "num_node_groups": 1,
            "replicas_per_node_group": 1,
            "automatic_failover": True,
            "multi_az": True,
            "security_group_ids": ["sg-1", "sg-2"],
            "parameter_group_name": "default.redis7",
            "subnet_group_name": "default",
            "transit_encryption": False,
            "snapshot_retention_limit": 3,
            "snapshot_window": "01:00-02:00",
        }
        assert run(made, **asked)["drift"] == {}

    def test_tags_are_changed_in_place(self, run: Run, aws: LabModules, made: str) -> None:
        args = {"node_type": "cache.r7g.large", "tags": {"a": "2"}}
        assert run(made, _check=True, **args)["changed"]
        changed, again = run(made, **args), run(made, **args)
        assert (changed["changed"], again["changed"]) == (True, False)
        assert changed["diff"] == {"before": {}, "after": {"tags": {"a": "2"}}}
        arn = changed["replication_group"]["arn"]
        tags = aws.client("elasticache").list_tags_for_resource(ResourceName=arn)["TagList"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "2", "keyferry:seed": SEED}

    def test_one_that_is_being_made_is_left_to_a_run_that_waits(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateReplicationGroup", "delay": 8})
        args = {"node_type": "cache.r7g.large", "snapshot_arns": [SEED], "tags": {"a": "1"}}
        assert run("being-made", wait=False, **args)["changed"]
        for other in ({"wait": False}, {"_check": True}):
            again = run("being-made", **args, **other)
            assert (again["changed"], again["replication_group"]["status"]) == (False, "creating")
        assert not run("being-made", **args)["changed"]

    def test_a_wait_outlasts_what_passes(self, run: Run, aws: LabModules, monkeypatch: pytest.MonkeyPatch) -> None:
        aws.order({"op": "CreateReplicationGroup", "delay": 5})
        run("waited-for", node_type="cache.r7g.large", wait=False)
        wait = ElastiCache.wait

        def order_and_wait(*args: Any, **options: Any) -> None:
            aws.order({"op": "DescribeCacheClusters", "reset": True, "times": 3})
            wait(*args, **options)

        monkeypatch.setattr(ElastiCache, "wait", order_and_wait)
        result = run("waited-for", node_type="cache.r7g.large", aws_config={"retries": {"max_attempts": 0}})
        assert "failed" not in result and result["replication_group"]["status"] == "available"

    def test_one_that_was_made_from_something_else_is_an_error(self, run: Run, made: str) -> None:
        result = run(made, snapshot_name="for-restore")
        assert result["failed"] and f"exists already and was made from {SEED}, not from for-restore" in result["msg"]
        source = run(SOURCE, snapshot_arns=[SEED])
        assert source["failed"] and "has no tag keyferry:seed" in source["msg"]
        assert run(made, snapshot_arns=[SEED], _check=True, node_type="cache.r7g.large")["changed"] is False


class TestFailed:
    @pytest.mark.parametrize("key", ["broken.rdb", "two-databases.rdb"])
    def test_an_rdb_that_cannot_be_restored_names_nodes_and_events(self, run: Run, key: str) -> None:
        name = f"failed-{key.partition('.')[0]}"
        args: dict[str, Any] = {"snapshot_arns": [f"arn:aws:s3:::{BUCKET}/{key}"]}
        if key == "two-databases.rdb":
            args |= {"cluster_mode": "enabled", "replicas_per_node_group": 1, "automatic_failover": True}
        first, again = run(name, **args), run(name, **args)
        for result in (first, again):
            assert result["failed"] and f"The replication group {name} is create-failed" in result["msg"]
            assert "could not load its RDB file" in result["msg"] and "state=absent" in result["msg"]
            assert set(result["failed_nodes"].values()) == {"restore-failed"}
            assert f"Failed to create replication group {name}" in json.dumps(result["events"])
        assert run(name, state="absent")["changed"]

    def test_one_that_fails_empty_is_told_too(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "CreateReplicationGroup", "fail": True}, {"op": "DescribeEvents", "code": "AccessDenied"})
        result = run("failed-empty")
        assert result["failed"] and "failed-empty-001 is create-failed" in result["msg"]

    @pytest.mark.parametrize(
        ("arn", "told"),
        [
            (f"arn:aws:s3:::{BUCKET}/nothing.rdb", "There is no object nothing.rdb in the bucket"),
            ("arn:aws:s3:::there-is-none/x.rdb", "The bucket there-is-none does not exist"),
            (f"arn:aws:s3:::{BUCKET}/a,b.rdb", "may not contain a comma"),
            (f"s3://{BUCKET}/seed.rdb", "is no ARN of an S3 object"),
            (f"arn:aws:s3:::{BUCKET}/kms.rdb", "encrypted with a KMS key"),
            ("arn:aws:s3:::private/x.rdb", "does not give s3:GetBucketAcl, s3:GetObject, s3:ListBucket to"),
            ("arn:aws:s3:::far-away/x.rdb", "is in us-west-2"),
        ],
    )
    def test_a_seed_that_cannot_be_is_told_before_aws(
        self, run: Run, aws: LabModules, seed: bytes, arn: str, told: str
    ) -> None:
        s3 = aws.client("s3")
        if "kms" in arn:
            s3.put_object(Bucket=BUCKET, Key="kms.rdb", Body=seed, ServerSideEncryption="aws:kms")
        for bucket, region in (("private", "eu-central-1"), ("far-away", "us-west-2")):
            if bucket in arn:
                place = {"LocationConstraint": region}
                aws.client("s3", region).create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
                aws.client("s3", region).put_object(Bucket=bucket, Key="x.rdb", Body=seed)
        before = len(aws.calls("CreateReplicationGroup"))
        result = run("unseeded", snapshot_arns=[arn])
        assert result["failed"] and told in result["msg"]
        assert len(aws.calls("CreateReplicationGroup")) == before

    def test_a_seed_that_only_elasticache_may_read_is_left_to_it(self, run: Run, aws: LabModules) -> None:
        aws.order({"op": "s3:HEAD *", "code": "AccessDenied", "status": 403, "times": 0})
        assert run("hidden-seed", snapshot_arns=[SEED])["changed"]

    def test_a_snapshot_that_cannot_be_is_told_before_aws(self, run: Run, aws: LabModules) -> None:
        assert "There is no snapshot nothing in eu-central-1" in run("x", snapshot_name="nothing")["msg"]
        aws.order({"op": "CreateSnapshot", "fail": True})
        aws.run("elasticache_snapshot", name="failed-seed", replication_group_id=SOURCE)
        result = run("x", snapshot_name="failed-seed")
        assert result["failed"] and "The snapshot failed-seed is failed" in result["msg"]

    def test_what_aws_needs_is_told(self, run: Run) -> None:
        assert "node_type is needed" in run("x", node_type=None)["msg"]
        for option, code in (
            ({"parameter_group_name": "nothing"}, "CacheParameterGroupNotFound"),
            ({"subnet_group_name": "nothing"}, "CacheSubnetGroupNotFoundFault"),
            ({"multi_az": True}, "InvalidParameterCombination"),
        ):
            result = run("x", **option)
            assert result["failed"] and result["error_code"] == code, result


class TestFaults:
    def test_throttling_and_5xx_are_tried_again(self, run: Run, aws: LabModules) -> None:
        aws.order(
            {"op": "CreateReplicationGroup", "code": "Throttling", "times": 2},
            {"op": "CreateReplicationGroup", "code": "ServiceUnavailable", "status": 503},
            {"op": "DescribeReplicationGroups", "reset": True},
            {"op": "DescribeCacheClusters", "code": "InternalFailure", "status": 500, "times": 2},
        )
        assert run("retried")["changed"]

    @pytest.mark.parametrize("delay", [0, 1])
    def test_a_lost_answer_to_create_is_no_failure(self, run: Run, aws: LabModules, delay: int) -> None:
        aws.order({"op": "CreateReplicationGroup", "after": True, "delay": delay})
        result = run(f"echo-{delay}", snapshot_arns=[SEED])
        assert "failed" not in result and len(keys_at(result["endpoint"])) == 100
        assert [call["code"] for call in aws.calls("CreateReplicationGroup")][-1] == "ReplicationGroupAlreadyExists"


class TestAbsent:
    def test_deletes_it_once_with_a_last_snapshot(self, run: Run, aws: LabModules) -> None:
        run("brief")
        assert run("brief", state="absent", _check=True)["changed"]
        args = {"state": "absent", "final_snapshot_name": "brief-last"}
        first, again = run("brief", **args), run("brief", **args)
        assert (first["changed"], first["replication_group"], again["changed"]) == (True, {}, False)
        last = aws.run("elasticache_snapshot", name="brief-last", state="absent")
        assert last["changed"]

    def test_one_that_is_busy_is_deleted_when_it_is_not(self, run: Run, aws: LabModules) -> None:
        run("occupied")
        aws.order({"op": "DeleteReplicationGroup", "code": "InvalidReplicationGroupState", "times": 2})
        assert run("occupied", state="absent")["changed"]

    @pytest.mark.parametrize("delay", [0, 1])
    def test_a_lost_answer_is_no_failure(self, run: Run, aws: LabModules, delay: int) -> None:
        run("lost")
        aws.order({"op": "DeleteReplicationGroup", "after": True, "delay": delay})
        assert run("lost", state="absent")["changed"]

    def test_one_that_is_going_is_no_target(self, run: Run, aws: LabModules) -> None:
        run("going")
        aws.order({"op": "DeleteReplicationGroup", "stuck": True})
        assert run("going", state="absent", wait=False)["replication_group"]["status"] == "deleting"
        result = run("going")
        assert result["failed"] and "is being deleted. Run again when it is gone" in result["msg"]
        assert run("going", state="absent", wait=False)["changed"] is False


class TestInfo:
    def test_tells_what_the_playbook_needs_of_the_source(self, aws: LabModules) -> None:
        result = aws.run("elasticache_replication_group_info", replication_group_id="Shared-Redis")
        assert result["changed"] is False
        (group,) = result["replication_groups"]
        assert (group["status"], group["engine"], group["engine_version"]) == ("available", "redis", "7.1.0")
        assert (group["cluster_mode"], group["databases"]) == ("disabled", 16)
        assert {node["role"]: node["endpoint"] for node in group["nodes"]} == {
            "primary": group["endpoint"],
            "replica": group["reader_endpoint"],
        }

    def test_tells_all_or_none(self, aws: LabModules, made: str) -> None:
        groups = aws.run("elasticache_replication_group_info")["replication_groups"]
        assert {SOURCE, made} <= {group["replication_group_id"] for group in groups}
        none = aws.run("elasticache_replication_group_info", replication_group_id="nothing")
        assert none["replication_groups"] == []


def test_a_playbook_runs_them_all_with_one_set_of_defaults(aws: LabModules, tmp_path: Path) -> None:
    """Through real Ansible: the action group, and the modules as they are packed for a host."""
    options = {key: aws.info[key] for key in ("endpoint_url", "region", "access_key", "secret_key")}
    rdb = str(tmp_path / "dump.rdb")
    tasks = [
        ("elasticache_replication_group_info", {"replication_group_id": SOURCE}),
        (
            "elasticache_snapshot",
            {"name": "by-play", "replication_group_id": SOURCE, "state": "exported", "bucket": BUCKET},
        ),
        ("s3_transfer", {"mode": "get", "bucket": BUCKET, "object": "by-play-0001.rdb", "path": rdb}),
        ("s3_transfer", {"mode": "put", "bucket": BUCKET, "object": "by-play-new.rdb", "path": rdb}),
        (
            "rdb_extract",
            {"src": f"s3://{BUCKET}/by-play-0001.rdb", "db": 1, "dest": f"s3://{BUCKET}/by-play-extracted.rdb"},
        ),
        ("elasticache_preflight_info", {"replication_group_id": SOURCE, "bucket": BUCKET}),
        (
            "elasticache_replication_group",
            {
                "replication_group_id": "by-play",
                "snapshot_arns": [f"arn:aws:s3:::{BUCKET}/by-play-new.rdb"],
                "node_type": "cache.t4g.small",
            },
        ),
    ]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "module_defaults": {"group/keyferry.redis.aws": options},
        "tasks": [{"name": name, f"keyferry.redis.{name}": args} for name, args in tasks],
    }
    playbook = tmp_path / "play.yml"
    playbook.write_text(json.dumps([play]))

    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(playbook)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=5 " in done.stdout
