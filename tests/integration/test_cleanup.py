# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook cleanup on the record of a run and what that has left. The tests are one story, in this order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import TOP
from integration.past_run import RUN, SOURCE, PastRun
from integration.plays import INVENTORY, Playbook, host_that_is_down
from support.following import Follower
from support.modules import LabModules

from lab import Lab
from lab.nodes import RedisServer, wait_for

EXPORT, RESULT, OTHER = f"{RUN}-0001.rdb", f"{RUN}-result.rdb", f"{RUN}-result.rdb.of-somebody-else"
FILES = ("export.rdb", "db1.resp", "result.rdb", "switch.json")


class Left(PastRun):
    """A run that is over, with all that it has left behind."""

    def __init__(self, aws: LabModules, directory: Path, target: RedisServer) -> None:
        super().__init__(aws, directory, target.port)
        self.target = target
        target.client(2).mset({f"key:{number}": 1 for number in range(200)})
        self.s3, self.ec = aws.client("s3"), aws.client("elasticache")
        for db in range(1, 4):
            self.client(db).flushdb()
            self.client(db).mset({f"key:{number}": db for number in range(200)})
        for name in (EXPORT, RESULT, OTHER):
            self.s3.put_object(Bucket=aws.info["bucket"], Key=name, Body=b"REDIS")
        self.take(RUN, Tags=[{"Key": "keyferry:run", "Value": RUN}])
        for name in (*FILES, "summary.txt"):
            (self.run_dir / name).write_text("data")
        self.backup = directory / "url.before-night"
        self.backup.write_text("redis://old:6379/1\n")
        before = {"tasks": "file", "name": str(self.url), "host": "", "backup": str(self.backup)}
        entry = {**before, "become": False}
        gone = {**entry, "host": "gone"}
        self.switched = {"switched": True, "tasks": "file", "before": [gone, entry]}
        self.record(switch=self.switched)

    def take(self, name: str, **options: Any) -> str:
        made = self.ec.create_snapshot(SnapshotName=name, CacheClusterId=f"{SOURCE}-001", **options)["Snapshot"]
        wait_for(lambda: (name, "available") in self.snapshots(), f"the snapshot {name}")
        return str(made["ARN"])

    def snapshots(self) -> list[tuple[str, str]]:
        found = self.ec.describe_snapshots()["Snapshots"]
        return [(each["SnapshotName"], each["SnapshotStatus"]) for each in found]

    def facts(self) -> dict[str, Any]:
        """All of it that is there."""
        found = self.s3.list_objects_v2(Bucket=self.aws.info["bucket"])
        return {
            "snapshots": [name for name, _status in self.snapshots()],
            "objects": sorted(each["Key"] for each in found.get("Contents", [])),
            # One that follows writes its own under another name first.
            "files": sorted(path.name for path in self.run_dir.iterdir() if path.name != "follow.json.part"),
            "backup": self.backup.exists(),
            "keys": {db: self.client(db).dbsize() for db in range(1, 4)},
        }


@pytest.fixture(scope="module")
def left(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    directory = tmp_path_factory.mktemp("left")
    with RedisServer(directory / "target", "redis") as target:
        yield Left(LabModules(lab), directory, target)


@pytest.fixture(scope="module")
def cleanup(lab: Lab, left: Left) -> Playbook:
    inventories = INVENTORY, host_that_is_down(left.directory, "gone")
    return Playbook(lab.info["dir"], TOP / "playbooks/cleanup.yml", *inventories)


def test_nothing_is_removed_while_anybody_may_need_it(cleanup: Playbook, left: Left) -> None:
    before = left.facts()
    left.record(verify=None, switch=None)
    cleanup.refuse(f"The run {RUN} is not complete", "say -e force=true.", "Nothing was removed.", src_db=1)
    half = f"The run {RUN} was broken off while it switched"
    cleanup.refuse(half, "Run rollback.yml first", "Nothing was removed.", src_db=1, force=True)
    left.record(switch={"switched": False, "rolled_back": 1.0})
    delete = {"delete_source_db": 3, "delete_source_keys": "many", "remove_instance": True}
    cleanup.refuse(
        f"The application is not switched by the run {RUN}, which was put back",
        "delete_source_db is 3, but the run shared-redis-db1 has moved database 1.",
        "delete_source_keys must be a count, not 'many'.",
        "Database 1 of shared-redis is not deleted while the application is not switched away from it.",
        src_db=1,
        **delete,
        switched_by_hand=True,
    )
    left.record(switch=left.switched)
    assert left.facts() == before


def test_check_mode_names_all_and_touches_nothing(cleanup: Playbook, left: Left) -> None:
    before, state = left.facts(), left.state()
    outcome = cleanup.succeed("--check", src_db=1, delete_source_db=1, delete_source_keys=before["keys"][1])
    named = outcome.words.partition("TASK [What is removed]")[2].partition("TASK [")[0]
    bucket, keys = left.aws.info["bucket"], before["keys"][1]
    for what in (
        f"database 1 of shared-redis, with {keys} keys",
        f"snapshot {RUN}",
        f"s3://{bucket}/{EXPORT}",
        f"s3://{bucket}/{RESULT}",
        str(left.backup),
        *(str(left.run_dir / name) for name in FILES),
    ):
        assert what in named, named
    assert OTHER not in named and "summary" not in named
    assert left.facts() == before and left.state() == state


def test_a_count_that_is_not_believable_is_refused(cleanup: Playbook, left: Left) -> None:
    before = left.facts()
    keys = before["keys"][1]
    few = {"delete_source_db": 1, "delete_source_keys": keys * 100 // 102}
    left.record(verify={"keys": 10**6}, switch=left.switched)
    cleanup.refuse(
        f"Database 1 of shared-redis holds {keys} keys, more than 1 % above delete_source_keys",
        f"Database 2 of {RUN} holds 200 keys, fewer than the 500000 that must be there",
        src_db=1,
        **few,
    )
    left.record(switch=left.switched)
    assert left.facts() == before


def test_the_only_copy_of_a_write_is_not_deleted(cleanup: Playbook, left: Left) -> None:
    before = left.facts()
    asked = {"src_db": 1, "delete_source_db": 1, "delete_source_keys": before["keys"][1]}
    told = "Database 1 of shared-redis is not deleted: {}, and the only copy of some writes may be there. Compare both"
    lossy = {"following": True, "settled": False, "lost": True, "lost_reason": "the source was restarted"}
    for settle, why in (
        (lossy, "the source was restarted"),
        ({"following": False}, "it was not followed until the application had moved"),
    ):
        left.record(switch=left.switched, settle=settle)
        cleanup.refuse(told.format(why), "say -e settled_by_hand=true. Nothing was removed.", **asked, force=True)
    with left.followed(left.target) as follower:
        follower.ready()
        why = "while it was followed, it never was quiet"
        cleanup.refuse(why, "Nothing was removed.", **asked, settled_by_hand=True, force=True, follow_settle_timeout=1)
        assert not follower.result()["lost"]
    for path in left.run_dir.glob("follow.json*"):
        path.unlink()
    assert left.facts() == before


@pytest.fixture
def follower(left: Left) -> Iterator[Follower]:
    """What a run leaves that was broken off before its phase settle."""
    left.record(switch=left.switched, settle=None)
    with left.followed(left.target, quiet=0.3) as found:
        found.ready()
        yield found


def test_it_goes_on_from_where_it_was_interrupted(cleanup: Playbook, left: Left, follower: Follower) -> None:
    before = left.facts()
    left.client(1).set("late", "key")
    left.aws.order({"op": f"s3:DELETE /{left.aws.info['bucket']}/{EXPORT}", "code": "AccessDenied", "status": 403})
    cleanup.refuse(f"The run {RUN} is not complete", src_db=1)
    asked = {"src_db": 1, "delete_source_db": 1, "delete_source_keys": before["keys"][1]}
    asked |= {"settled_by_hand": True, "force": True}
    outcome = cleanup.run(**asked)
    left.aws.forget_faults()
    # Ended before the source's keys went, which it would have removed from the target too.
    assert (follower.result()["lost"], left.target.client(2).dbsize()) == (False, 201)
    assert outcome.code != 0 and left.facts()["objects"] == [EXPORT, OTHER], outcome.output
    assert left.facts()["files"] == sorted([*before["files"], "follow.json.stop"])
    back = Playbook(left.aws.info["dir"], TOP / "playbooks/rollback.yml")
    back.refuse(
        "cleanup.yml has deleted database 1 of shared-redis, and it holds no keys: the application would find none.",
        "Nothing was changed.",
        src_db=1,
    )
    outcome = cleanup.succeed(**asked)
    # An application's host that is gone holds nothing up.
    assert f"NOT deleted, as the host could not be reached: {left.backup} on gone." in outcome.words, outcome.output
    assert left.facts() == {
        "snapshots": [],
        "objects": [OTHER],
        "files": ["report.html", "report.json", "state.json", "summary.txt"],
        "backup": False,
        "keys": {**before["keys"], 1: 0},
    }
    assert left.state()["cleaned"]["at"] > 0 and left.state()["cleaned"]["source_db_keys"] == 201
    removed = json.loads((left.run_dir / "report.json").read_text())["removed"]
    assert f"snapshot {RUN}" in removed and f"s3://{left.aws.info['bucket']}/{RUN}-result.rdb" in removed


def test_run_again_it_changes_nothing(cleanup: Playbook, left: Left) -> None:
    outcome = cleanup.succeed(src_db=1, force=True)
    assert outcome.recap["changed"] == 0, outcome.output
    back = Playbook(left.aws.info["dir"], TOP / "playbooks/rollback.yml")
    back.refuse("was cleaned up, so what was there before its switch is gone", src_db=1)


def test_what_another_run_needs_stays(cleanup: Playbook, left: Left) -> None:
    """Moves of one list share a snapshot and its export."""
    another = left.run_dir.with_name("another")
    another.mkdir()
    (another / "state.json").write_text(json.dumps({"about": {}, "phases": {"snapshot": {"snapshot": RUN}}}))
    left.s3.put_object(Bucket=left.aws.info["bucket"], Key=EXPORT, Body=b"REDIS")
    outcome = cleanup.succeed(src_db=1, force=True)
    assert f"NOT the snapshot {RUN} and its export, which other runs need: another" in outcome.words
    assert EXPORT in left.facts()["objects"]
    busy = "The migration host also serves the runs another, which are not cleaned up"
    for what in ("remove_instance", "remove_host"):
        cleanup.refuse(busy, "Nothing was removed.", src_db=1, force=True, **{what: True})


def test_what_the_run_has_not_made_stays(cleanup: Playbook, left: Left) -> None:
    """A run that was given up as its names were taken, and one that was killed ahead of its records."""
    early, bucket = left.run_dir.with_name("early"), left.aws.info["bucket"]
    early.mkdir()
    phases = {"host": {"began": 1.0, "seconds": 1.0}}
    about = {"source": SOURCE, "src_db": 1, "dest_db": 0, "target": "early", "strategy": "resp"}
    (early / "state.json").write_text(json.dumps({"about": about, "phases": phases}))
    arn = left.take("early")
    for name in ("early-0001.rdb", "early-result.rdb"):
        left.s3.put_object(Bucket=bucket, Key=name, Body=b"REDIS")
    before = left.facts()
    outcome = cleanup.succeed(run_id="early", force=True, bucket=bucket)
    for words in (
        "NOT the snapshot early: The snapshot early lacks the tags keyferry:run=early",
        f"NOT s3://{bucket}/early-0001.rdb, which is not known to be of this run",
        f"NOT s3://{bucket}/early-result.rdb, which",
    ):
        assert words in outcome.words, outcome.output
    assert {**left.facts(), "files": before["files"]} == before

    left.ec.add_tags_to_resource(ResourceName=arn, Tags=[{"Key": "keyferry:run", "Value": "early"}])
    (early / "result.rdb").write_text("REDIS")
    sent = {"path": str(early / "result.rdb"), "bucket": bucket, "object": "early-result.rdb"}
    assert left.aws.run("s3_transfer", mode="put", **sent)["changed"]
    cleanup.succeed(run_id="early", force=True, bucket=bucket)
    after = left.facts()
    assert "early" not in after["snapshots"] and not [key for key in after["objects"] if key.startswith("early")]


def test_an_interrupted_removal_of_the_instance_is_finished(cleanup: Playbook, tmp_path: Path) -> None:
    """Killed behind the directory, in which the runs were."""
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".keyferry").touch()
    gone = {"migration_host_dir": str(tmp_path / "gone"), "migration_host_venv": str(venv), "migration_host_python": ""}
    refused = f"There is no {tmp_path}/gone/runs on localhost, so it is not known which runs still need the host."
    cleanup.refuse(refused, "Nothing was removed.", src_db=1, remove_instance=True, remove_host=True, **gone)
    assert venv.exists()
    outcome = cleanup.succeed(src_db=1, remove_instance=True, **gone)
    assert not venv.exists() and "so there is nothing to clean up there." in outcome.words


def test_a_limit_that_keeps_the_ec2_instance_is_refused(left: Left, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"migration_host": {"hosts": {"mig1": {"ansible_connection": "local"}}}}))
    cleanup = Playbook(left.aws.info["dir"], TOP / "playbooks/cleanup.yml", INVENTORY, inventory)
    cleanup.refuse(
        "--limit mig1 leaves out localhost, where the EC2 instance is taken away from. Say --limit mig1,localhost",
        "Nothing was removed.",
        arguments=("--limit=mig1",),
        src_db=1,
        remove_host=True,
    )
