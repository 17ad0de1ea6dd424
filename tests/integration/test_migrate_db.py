# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole cutover on the lab, and everything that it refuses. The tests are one story, in this order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import SOURCE, TOP, Cutover, processes_of
from integration.plays import INVENTORY, other_host

from lab.nodes import wait_for
from lab.prove import Side

TARGET = f"{SOURCE}-db1"
TOKEN = "a-token-of-32-characters-and-more"
PHASES = ["host", "preflight", "snapshot", "restore", "move", "publish", "verify", "catch_up", "switch", "settle"]


@pytest.fixture(scope="module")
def tls_source(cutover: Cutover) -> str:
    """A second source, with TLS and AUTH; database 2 holds 51 keys, one of 2 MB."""
    ec = cutover.aws.client("elasticache")
    ec.create_replication_group(
        ReplicationGroupId="tls-redis",
        ReplicationGroupDescription="a test",
        CacheNodeType="cache.r7g.large",
        TransitEncryptionEnabled=True,
        AuthToken=TOKEN,
    )
    ec.get_waiter("replication_group_available").wait(ReplicationGroupId="tls-redis", WaiterConfig={"Delay": 1})
    side = Side(cutover.info, cutover.groups()["tls-redis"], 2)
    side.primaries[0].mset({b"k\x00\xff%d" % number: number for number in range(49)})
    side.primaries[0].set("lives", "long", ex=86400)
    side.primaries[0].set("large", os.urandom(2_000_000))
    return "tls-redis"


# Before anything is there


def test_a_run_must_say_what_it_is_to_move(cutover: Cutover) -> None:
    cutover.refuse("Which database is to be moved? Give its number, for example -e src_db=1. Nothing was changed.")
    cutover.refuse(
        "src_db must be the number of a database, not 'one'",
        "dest_db must be the number of a database, not '-1'",
        "strategy must be resp, rdb or swap, not 'magic'",
        "There is no file /no/tasks.yml.",
        "cutover_hosts names app, which the inventory does not have.",
        src_db="one",
        dest_db="-1",
        strategy="magic",
        cutover_tasks="/no/tasks.yml",
        cutover_hosts="app",
    )
    assert not cutover.host.exists()


def test_check_mode_says_what_it_would_do_and_touches_nothing(cutover: Cutover, tmp_path: Path) -> None:
    groups, backend = cutover.groups(), tmp_path / "backend.url"
    outcome = cutover.succeed("--check", src_db=1, cutover_tasks="file", cutover_file=str(backend))
    for would in (
        f"s3://{cutover.info['bucket']}",
        f"Would fetch s3://{cutover.info['bucket']}/{TARGET}-0001.rdb",
        "Would dump database 1 of the migration host's own instance",
        f"create the replication group {TARGET}",
        f"Would compare database 0 of {TARGET}",
        "Would run file",
    ):
        assert would in outcome.words, outcome.output
    assert not cutover.host.exists() and not backend.exists()
    assert cutover.groups() == groups
    assert cutover.snapshots() == cutover.objects() == []


# From end to end


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an inventory with a host of the application's own, and of what that host's Python notes."""
    directory = tmp_path_factory.mktemp("application")
    other_host(directory, "app")
    return directory


@pytest.fixture(scope="module")
def inventories(application: Path) -> list[str]:
    return [f"--inventory={each}" for each in (INVENTORY, application / "app.json")]


def test_the_database_moves_through_an_aws_that_stutters(
    cutover: Cutover, application: Path, inventories: list[str], tmp_path: Path
) -> None:
    backend = tmp_path / "backend.url"
    backend.write_text("redis://old:6379/1\n")
    before = cutover.source_digest()
    cutover.aws.order(
        {"op": "DescribeReplicationGroups", "code": "Throttling", "times": 2},
        {"op": "CreateSnapshot", "code": "Throttling"},
        {"op": "DescribeSnapshots", "code": "InternalFailure", "status": 500},
        {"op": "CopySnapshot", "code": "ServiceUnavailable", "status": 503},
        {"op": "s3:GET /*", "code": "SlowDown", "status": 503},
        {"op": "s3:PUT /*", "code": "InternalError", "status": 500},
        {"op": "CreateReplicationGroup", "after": True},
    )
    reports = tmp_path / "reports"
    reports.mkdir(mode=0o700)
    told = {"cutover_tasks": "file", "cutover_file": str(backend), "report_dir": str(reports)}
    outcome = cutover.succeed(*inventories, src_db=1, cutover_hosts="app", **told)
    cutover.aws.forget_faults()
    proof = cutover.proof()
    assert proof["equal"], proof
    assert cutover.source_digest() == before
    endpoint = cutover.state()["phases"]["publish"]["endpoint"]
    assert backend.read_text() == f"redis://{endpoint['address']}:{endpoint['port']}/0\n"
    kept = cutover.state()["phases"]["switch"]["before"]
    assert [Path(each["backup"]).read_text() for each in kept] == ["redis://old:6379/1\n"]
    summary = (cutover.run_dir() / "summary.txt").read_text()
    for line in summary.splitlines():
        assert " ".join(line.split()) in outcome.words
    assert summary.startswith(f"COMPLETE, run {TARGET}\n")
    assert (application / "python.log").exists()
    assert list(cutover.state()["phases"]) == cutover.state()["plan"] == PHASES
    report = cutover.report()
    assert (report["outcome"], report["equal"], report["to_do"]) == ("COMPLETE", True, [])
    assert [each["database"] for each in report["databases"] if each["estimated_bytes"] > 0] == [0, 1, 2, 3, 5, 15]
    for kind in ("html", "json"):
        assert (reports / f"{TARGET}.{kind}").read_bytes() == (cutover.run_dir() / f"report.{kind}").read_bytes()
    assert (reports / f"{TARGET}-preflight.txt").read_text().startswith("PREFLIGHT  READY\n")
    assert reports.stat().st_mode & 0o777 == 0o700
    # A few keys of the sample live for seconds.
    moved = cutover.state()["phases"]
    assert moved["preflight"]["keys"] >= moved["restore"]["keys"] >= moved["move"]["dumped"] >= moved["verify"]["keys"]
    assert 280 < moved["verify"]["keys"] <= moved["move"]["loaded"] == moved["move"]["dumped"]
    # None begins before the one ahead of it has ended.
    ends = [phase["began"] + phase["seconds"] for phase in moved.values()]
    assert all(phase["began"] > end - 0.001 for phase, end in zip([*moved.values()][1:], ends, strict=False)), moved


def test_no_secret_is_told(cutover: Cutover) -> None:
    told = "".join(path.read_text() for path in cutover.run_dir().glob("*.[hjt]*"))
    assert "COMPLETE" in told
    assert cutover.info["secret_key"] not in told
    assert all(path.stat().st_mode & 0o077 == 0 for path in cutover.run_dir().iterdir())


def test_a_second_run_changes_nothing(cutover: Cutover, inventories: list[str]) -> None:
    files = {path: path.stat().st_mtime_ns for path in cutover.run_dir().iterdir()}
    snapshots, objects, groups = cutover.snapshots(), cutover.objects(), cutover.groups()
    # The report names the inventories, in the commands that it gives.
    outcome = cutover.succeed(*inventories, src_db=1)
    assert outcome.recap["changed"] == 0, outcome.output
    assert f"The run {TARGET} is complete" in outcome.words
    assert files == {path: path.stat().st_mtime_ns for path in cutover.run_dir().iterdir()}
    assert (snapshots, objects, groups) == (cutover.snapshots(), cutover.objects(), cutover.groups())


def test_a_run_keeps_its_name_to_itself(cutover: Cutover) -> None:
    cutover.refuse("belongs to another run", "-e run_id=", src_db=2, run_id=TARGET)


# What the preflight refuses


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["Database 9 of shared-redis holds no keys", "Databases with keys: 0, 1, 2, 3, 5, 15"], {"src_db": 9}),
        (["There is no replication group nobody", "aws_region"], {"source_replication_group_id": "nobody"}),
        (
            [f"The replication group {TARGET} exists already, and not from this run", "target_replication_group_id"],
            {"target_replication_group_id": TARGET},
        ),
        (["cannot have the source's name"], {"target_replication_group_id": SOURCE}),
        (["invalid username-password pair"], {"source_login_user": "me", "source_login_password": "not-the-password"}),
        (["http://127.0.0.1:9"], {"aws_endpoint_url": "http://127.0.0.1:9"}),
    ],
    ids=["empty-database", "no-source", "target-is-there", "target-is-source", "password", "endpoint"],
)
def test_the_preflight_refuses(cutover: Cutover, words: list[str], extra: dict[str, Any]) -> None:
    run_id = f"refused-{abs(hash(str(extra))) % 10**6}"
    outcome = cutover.refuse(*words, arguments=("--tags=preflight",), **{"src_db": 2, "run_id": run_id, **extra})
    assert "not-the-password" not in outcome.output
    assert not cutover.run_dir(run_id).exists()


def test_the_preflight_refuses_a_source_in_cluster_mode(cutover: Cutover) -> None:
    ec = cutover.aws.client("elasticache")
    ec.create_replication_group(
        ReplicationGroupId="clustered",
        ReplicationGroupDescription="a test",
        CacheNodeType="cache.r7g.large",
        NumNodeGroups=2,
        ReplicasPerNodeGroup=0,
        ClusterMode="enabled",
        AutomaticFailoverEnabled=True,
    )
    ec.get_waiter("replication_group_available").wait(ReplicationGroupId="clustered", WaiterConfig={"Delay": 1})
    cutover.refuse(
        "clustered is in cluster mode, which has database 0 only",
        arguments=("--tags=preflight",),
        src_db=1,
        source_replication_group_id="clustered",
    )


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["requires an AUTH token", "set target_auth_token"], {"target_auth_token": ""}),
        (["invalid username-password pair"], {"source_login_password": "wrong-token-wrong-token"}),
        (["certificate", "ca_certs"], {"source_ca_certs": ""}),
    ],
    ids=["no-token-for-the-new-one", "token", "ca"],
)
def test_the_preflight_refuses_wrong_tls_and_auth(
    cutover: Cutover, tls_source: str, words: list[str], extra: dict[str, Any]
) -> None:
    right = {"source_login_password": TOKEN, "target_auth_token": TOKEN}
    outcome = cutover.refuse(
        *words,
        arguments=("--tags=preflight",),
        **{"src_db": 2, "source_replication_group_id": tls_source, **right, **extra},
    )
    assert TOKEN not in outcome.output and "wrong-token-wrong-token" not in outcome.output


def test_the_source_is_never_taken_for_the_migration_host(cutover: Cutover) -> None:
    port = cutover.groups()[SOURCE]["nodes"][0]["port"]
    directory = cutover.host.with_name("elsewhere")
    snapshots = cutover.snapshots()
    cutover.refuse(
        f"127.0.0.1:{port} is taken",
        src_db=3,
        migration_host_port=port,
        migration_host_dir=str(directory),
    )
    assert cutover.snapshots() == snapshots
    assert not processes_of(directory)


# What the snapshot refuses


@pytest.fixture(scope="module")
def ready(cutover: Cutover) -> dict[str, Any]:
    """A run whose host is set up."""
    run = {"src_db": 5, "run_id": "refused"}
    cutover.succeed("--tags=host,preflight", **run)
    # As often as it is asked for.
    assert "keyferry.redis.migration_host : " in cutover.succeed("--tags=host", **run).output
    return run


TAKE = ("--tags=preflight,snapshot",)


def test_the_snapshot_refuses_a_bucket_that_is_not_there(cutover: Cutover, ready: dict[str, Any]) -> None:
    cutover.refuse("The bucket nowhere does not exist", arguments=TAKE, bucket="nowhere", **ready)
    assert "refused" not in cutover.snapshots()


def test_the_snapshot_refuses_a_bucket_that_elasticache_may_not_write_to(
    cutover: Cutover, ready: dict[str, Any]
) -> None:
    s3, bucket = cutover.aws.client("s3"), cutover.info["bucket"]
    policy = s3.get_bucket_policy(Bucket=bucket)["Policy"]
    s3.delete_bucket_policy(Bucket=bucket)
    try:
        cutover.refuse(
            f"may not use the bucket {bucket}", "s3:PutObject", "Add this statement", arguments=TAKE, **ready
        )
    finally:
        s3.put_bucket_policy(Bucket=bucket, Policy=policy)
    assert "refused" not in cutover.snapshots()


def test_the_snapshot_refuses_a_name_that_another_source_has(
    cutover: Cutover, ready: dict[str, Any], tls_source: str
) -> None:
    ec = cutover.aws.client("elasticache")
    ec.create_snapshot(SnapshotName="refused", CacheClusterId=f"{tls_source}-001")
    wait_for(lambda: cutover.snapshot_status("refused") == "available", "the other snapshot")
    cutover.refuse("The snapshot name refused is taken", f"{tls_source}-001", arguments=TAKE, **ready)
    ec.delete_snapshot(SnapshotName="refused")
    wait_for(lambda: "refused" not in cutover.snapshots(), "the other snapshot to go")


def test_a_snapshot_that_fails_is_told_with_its_events(cutover: Cutover, ready: dict[str, Any]) -> None:
    objects = cutover.objects()
    cutover.aws.order({"op": "CreateSnapshot", "fail": True})
    cutover.refuse("The snapshot refused of", "ended as failed", "Events:", "Delete it", arguments=TAKE, **ready)
    assert cutover.objects() == objects
    assert "snapshot" not in cutover.state("refused")["phases"]


# TLS and AUTH, another number, phase by phase, with what goes wrong on the way


@pytest.fixture(scope="module")
def secured(tls_source: str) -> dict[str, Any]:
    """A run from the source with TLS and AUTH to a new one of the same kind, whose database is number 3."""
    tokens = {"source_login_password": TOKEN, "target_auth_token": TOKEN}
    return {"src_db": 2, "dest_db": 3, "source_replication_group_id": tls_source, **tokens}


RUN = "tls-redis-db2"


def test_phases_can_be_run_by_themselves_but_not_before_their_turn(cutover: Cutover, secured: dict[str, Any]) -> None:
    outcome = cutover.succeed("--tags=host,preflight,snapshot", **secured)
    assert "NOT COMPLETE" in outcome.output and "still to do are restore, move" in outcome.words
    assert list(cutover.state(RUN)["phases"]) == PHASES[:3]
    cutover.refuse("verify goes on from what restore, move, publish leave", arguments=("--tags=verify",), **secured)


def test_a_full_disk_leaves_no_half_file(cutover: Cutover, secured: dict[str, Any]) -> None:
    with cutover.start("--tags=restore", file_limit=1_000_000, **secured) as running:
        outcome = running.end()
    assert outcome.code != 0
    assert f"Cannot write {cutover.run_dir(RUN)}/export.rdb.part: File too large" in outcome.words
    assert not list(cutover.run_dir(RUN).glob("export.rdb*"))


def test_a_group_that_fails_is_told_with_its_events(cutover: Cutover, secured: dict[str, Any]) -> None:
    cutover.aws.order({"op": "CreateReplicationGroup", "fail": True})
    # A second try meets it, and does not take it for a good one.
    for _try in range(2):
        why = f"The replication group {RUN} is create-failed"
        outcome = cutover.refuse(why, "events:", "Delete it", **secured)
        assert f"The phase publish of the run {RUN} has failed at" in outcome.words
        report = cutover.report(RUN)
        assert (report["outcome"], report["failure"]["phase"]) == ("FAILED", "publish")
        assert why in report["failure"]["message"] and why in (cutover.run_dir(RUN) / "report.html").read_text()
    assert list(cutover.state(RUN)["phases"]) == PHASES[:5]
    ec = cutover.aws.client("elasticache")
    ec.delete_replication_group(ReplicationGroupId=RUN)
    wait_for(lambda: RUN not in cutover.groups(), "the failed group to go")


def test_the_rest_goes_on_from_there_and_is_proven(cutover: Cutover, secured: dict[str, Any]) -> None:
    outcome = cutover.succeed("--skip-tags=switch", **secured)
    assert "still to do are switch" in outcome.words
    assert TOKEN not in outcome.output + "".join(path.read_text() for path in cutover.run_dir(RUN).glob("*.[hjt]*"))
    assert cutover.report(RUN)["outcome"] == "NOT COMPLETE"
    proof = cutover.proof(2, RUN, 3, secured["source_replication_group_id"])
    assert proof["equal"] and proof["keys"] == 51, proof


# The switch


def forget_the_switch(cutover: Cutover) -> None:
    state = cutover.state(RUN)
    state["phases"].pop("switch", None)
    (cutover.run_dir(RUN) / "state.json").write_text(json.dumps(state))


def test_the_switch_runs_tasks_of_the_users_own(cutover: Cutover, secured: dict[str, Any], tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    names = ("host", "port", "tls", "db", "replication_group_id")
    content = ", ".join(f"'{name}': cutover_{name}" for name in names)
    tasks = [
        {"ansible.builtin.copy": {"dest": str(told), "mode": "0600", "content": f"{{{{ {{{content}}} | to_json }}}}"}}
    ]
    (tmp_path / "mine.yml").write_text(json.dumps(tasks))
    outcome = cutover.succeed(cutover_tasks=os.path.relpath(tmp_path / "mine.yml", TOP), **secured)
    endpoint = cutover.state(RUN)["phases"]["publish"]["endpoint"]
    assert json.loads(told.read_text()) == {
        "host": endpoint["address"],
        "port": endpoint["port"],
        "tls": True,
        "db": 3,
        "replication_group_id": RUN,
    }
    assert f"COMPLETE, run {RUN}" in outcome.output


def test_the_switch_sets_a_record_of_route_53(cutover: Cutover, secured: dict[str, Any]) -> None:
    route53 = cutover.aws.client("route53")
    zone = route53.create_hosted_zone(Name="example.internal.", CallerReference="one")["HostedZone"]["Id"]
    forget_the_switch(cutover)
    cutover.succeed(
        cutover_tasks="route53",
        cutover_route53_zone="example.internal",
        cutover_route53_private_zone=False,
        cutover_route53_record="redis.example.internal",
        **secured,
    )
    records = route53.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    record = next(each for each in records if each["Name"] == "redis.example.internal.")
    address = cutover.state(RUN)["phases"]["publish"]["endpoint"]["address"]
    assert (record["Type"], record["ResourceRecords"]) == ("CNAME", [{"Value": address}])


def test_the_switch_sets_a_parameter(cutover: Cutover, secured: dict[str, Any]) -> None:
    ssm = cutover.aws.client("ssm")
    ssm.put_parameter(Name="/backend/redis", Value="redis://old:6379/1", Type="String")
    forget_the_switch(cutover)
    cutover.succeed(cutover_tasks="ssm_parameter", cutover_ssm_parameter="/backend/redis", **secured)
    endpoint = cutover.state(RUN)["phases"]["publish"]["endpoint"]
    value = ssm.get_parameter(Name="/backend/redis")["Parameter"]["Value"]
    assert value == f"rediss://{endpoint['address']}:{endpoint['port']}/3"
