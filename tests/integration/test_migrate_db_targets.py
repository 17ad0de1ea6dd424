# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cutover into an ElastiCache that exists, of several databases at once, and beside a source that is written to."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import SOURCE, Cutover
from redis.exceptions import ResponseError
from support.following import Writer

from lab.nodes import wait_for
from lab.prove import Side

SHARDED = {
    "NumNodeGroups": 2,
    "ReplicasPerNodeGroup": 1,
    "AutomaticFailoverEnabled": True,
    "CacheParameterGroupName": "default.redis7.cluster.on",
}
ALONE = {"NumCacheClusters": 2}


def test_what_cannot_go_together_is_refused(cutover: Cutover) -> None:
    cutover.refuse(
        "target=existing is filled by dump and load",
        "Which ElastiCache exists already? With target=existing, set target_replication_group_id.",
        "pause_before names lunch; the phases of this run are host, preflight, snapshot, fill, verify",
        src_db=2,
        target="existing",
        strategy="rdb",
        pause_before=["lunch"],
    )
    cutover.refuse(
        "Give src_db or a list of moves, not both.",
        "A move has no src_db",
        "A list of moves needs strategy=rdb",
        src_db=1,
        moves=[{"src_db": 2}, {"dest_db": 3}],
    )
    cutover.refuse(
        "Two moves are the same run, by night, night: give each a run_id of its own.",
        f"Two moves have one target, by {SOURCE}-db3, {SOURCE}-db3",
        strategy="rdb",
        moves=[
            {"src_db": 2, "run_id": "night", "target_replication_group_id": f"{SOURCE}-db3"},
            {"src_db": 3, "run_id": "night"},
        ],
    )
    moves = [{"src_db": 2}, {"src_db": 3, "dest_db": "three"}]
    left_out = f"--limit localhost leaves out {SOURCE}-db2, {SOURCE}-db3: each move of a list is a host of its own."
    cutover.refuse(left_out, arguments=("--limit=localhost",), strategy="rdb", moves=moves)
    # The first move does not begin either.
    cutover.refuse("dest_db must be the number of a database, not 'three'", strategy="rdb", moves=moves)
    assert not cutover.host.exists()


@pytest.mark.parametrize("options", [SHARDED, ALONE], ids=["sharded", "alone"])
def test_one_that_exists_is_filled_once_it_is_empty(cutover: Cutover, options: dict[str, Any]) -> None:
    target = "sharded" if options is SHARDED else "alone"
    shards = make(cutover, target, **options)
    in_the_way = next(shard for shard in shards if takes(shard, "in the way"))
    run: dict[str, Any] = {
        "src_db": 2,
        "target": "existing",
        "run_id": f"into-{target}",
        "target_replication_group_id": target,
    }
    cutover.refuse(f"Database 0 of {target} holds keys already", "Nothing was changed.", **run)
    assert f"into-{target}" not in cutover.snapshots()
    in_the_way.flushdb()
    assert in_the_way.wait(1, 30_000) == 1
    with cutover.start(**run) as running:
        running.reach("Load it into database 0")
        running.kill()
    cutover.succeed(**run)
    proof = cutover.proof(2, target)
    assert proof["equal"] and proof["keys"] > 0, proof
    assert cutover.succeed(**run).recap["changed"] == 0
    groups = cutover.aws.calls("CreateReplicationGroup")
    assert len([call for call in groups if call["parameters"].get("ReplicationGroupId") == target]) == 1


def test_one_that_holds_keys_is_filled_where_the_user_says_so(cutover: Cutover) -> None:
    (primary,) = make(cutover, "shared-target", **ALONE)
    primary.set("stays", "here")
    run = {"src_db": 3, "target": "existing", "run_id": "beside", "target_replication_group_id": "shared-target"}
    outcome = cutover.succeed(target_may_hold_keys=True, **run)
    for told in ("(strategy existing)", "dumped ", "ENDPOINT 127.0.0.1:"):
        assert told in outcome.words.partition("COMPLETE, run beside")[2], outcome.words
    assert primary.get("stays") == b"here"
    proof = cutover.proof(3, "shared-target")
    assert (proof["extra"], proof["missing"], proof["different"]) == (["stays"], [], [])


def test_two_databases_leave_in_one_window(cutover: Cutover) -> None:
    moves = [{"src_db": 2, "run_id": "list-two"}, {"src_db": 3, "target_replication_group_id": "list-three"}]
    run = {"strategy": "rdb", "run_id": "apart", "moves": moves}
    outcome = cutover.refuse("so publish was not begun", pause_before="publish", pause_timeout=1, **run)
    assert outcome.output.count("Cut database 2, 3 out of") == 1
    assert not cutover.groups().keys() & {f"{SOURCE}-db2", "list-three"}
    cutover.aws.order({"op": "CreateReplicationGroup", "code": "InsufficientCacheClusterCapacity", "status": 400})
    cutover.refuse("The phase publish of the run list-two has failed at", **run)
    assert cutover.report("list-two")["failure"]["phase"] == "publish"
    cutover.succeed(**run)
    for source_db, target in ((2, f"{SOURCE}-db2"), (3, "list-three")):
        proof = cutover.proof(source_db, target)
        assert proof["equal"] and proof["keys"] > 0, proof
    assert cutover.snapshots().count("apart") == 1
    assert not [name for name in cutover.snapshots() if name.startswith("list")]


def test_a_run_that_goes_on_after_another_has_used_the_host_brings_its_own_database(cutover: Cutover) -> None:
    """Both leave their result in the one instance, and the first goes on from its own."""
    moved = "--tags=host,preflight,snapshot,restore,move"
    first = {"src_db": 2, "run_id": "first", "target_replication_group_id": "first", "catch_up": False}
    cutover.succeed(moved, **first)
    cutover.succeed(moved, src_db=3, run_id="second", target_replication_group_id="second")
    outcome = cutover.succeed(**first)
    assert "Give the instance the RDB" in outcome.output
    proof = cutover.proof(2, "first")
    assert proof["equal"] and proof["keys"] > 0, proof


def test_what_is_written_until_the_application_has_moved_comes_along(cutover: Cutover, tmp_path: Path) -> None:
    source = cutover.source_client(2)
    run = {"src_db": 2, "strategy": "swap", "run_id": "late", "target_replication_group_id": "late"}
    run |= {"cutover_tasks": "file", "cutover_file": str(tmp_path / "backend.url"), "pause_before": "switch"}
    with Writer(source, "late", keys=100, expiring=False) as writer:
        # Killed while it waits; what follows in the background goes on.
        with cutover.start(**run) as running:
            running.reach("Wait for")
            running.kill()
        source.set("comes", "after it was killed")
        target = Side(cutover.info, cutover.groups()["late"], 0).primaries[0]
        wait_for(lambda: target.get("comes"), "what was written since")
        followed = json.loads((cutover.run_dir("late") / "follow.json").read_text())
        with cutover.start(**run) as running:
            running.reach("Wait for")
            assert len(cutover.state("late")["phases"]["catch_up"]["rounds"]) == 1
            # Killed itself, it is begun again before the switch.
            os.kill(followed["pid"], signal.SIGKILL)
            source.set("comes", "after that was killed, too")
            (cutover.run_dir("late") / "continue-switch").touch()
            running.reach("End the following")
            at_switch = len(writer.log)
            target.mset({"app:new": 1, "both": "the application's"})
            source.mset({"last": "after the switch", "both": "the source's"})
            wait_for(lambda: len(writer.log) > at_switch + 500, "more writes")
            writer.end()
            outcome = running.end()
    assert outcome.code == 0, outcome.output
    phases = cutover.state("late")["phases"]
    assert len(phases["catch_up"]["rounds"]) == 2 and phases["catch_up"]["following"]
    settle = phases["settle"]
    assert (settle["lost"], settle["settled"], settle["conflicts"]) == (False, True, 1), settle
    assert settle["copied"] > 10 and settle["examples"] == {"conflicts": ["'both'"]}
    assert "COMPLETE, run late" in outcome.output
    assert target.mget("app:new", "both") == [b"1", b"the application's"]
    # The rest is equal.
    target.delete("app:new")
    source.set("both", "the application's")
    proof = cutover.proof(2, "late")
    assert proof["equal"], proof
    assert cutover.succeed(**run).recap["changed"] == 0


def test_what_is_written_until_a_later_try_of_the_switch_comes_along(cutover: Cutover) -> None:
    """In rounds, beside writers that were stopped for a try which failed before it had changed anything."""
    source, ssm = cutover.source_client(3), cutover.aws.client("ssm")
    run = {"src_db": 3, "strategy": "swap", "run_id": "again", "target_replication_group_id": "again", "follow": False}
    run |= {"cutover_tasks": "ssm_parameter", "cutover_ssm_parameter": "/again/redis", "pause_before": "switch"}
    cutover.succeed("--skip-tags=switch,settle", **run)
    target = Side(cutover.info, cutover.groups()["again"], 0).primaries[0]
    go_on = cutover.run_dir("again") / "continue-switch"
    cutover.refuse("The phase switch of the run again has failed", "so switch was not begun", pause_timeout=1, **run)
    assert cutover.report("again")["failure"]["phase"] == "switch"
    go_on.touch()
    cutover.refuse("Could not read the parameter /again/redis", **run)
    source.set("between", "two tries")
    ssm.put_parameter(Name="/again/redis", Value="redis://old:6379/3", Type="String")
    # Another night: nobody waits, and the node that was read before is gone. Killed with the switch begun.
    state = cutover.state("again")
    state["phases"]["preflight"] |= {"login": {"host": "127.0.0.1", "port": 1, "tls": False}, "run_ids": ["gone"]}
    (cutover.run_dir("again") / "state.json").write_text(json.dumps(state))
    with cutover.start(**{**run, "pause_before": []}) as running:
        running.reach("Set /again/redis")
        running.kill()
    assert target.get("between") == b"two tries"
    source.set("after", "the switch had begun")
    target.set("between", "the application's")
    go_on.touch()
    outcome = cutover.succeed(**run)
    assert "WHAT WAS WRITTEN TO shared-redis SINCE THE LAST ROUND IS NOT THERE." in outcome.words, outcome.output
    assert target.mget("between", "after") == [b"the application's", None]
    assert "COMPLETE, run again" in outcome.output
    # As it is after catch_up=false. Started without that, it does not begin to undo what the application has written.
    state = cutover.state("again")
    del state["phases"]["catch_up"], state["phases"]["settle"]
    (cutover.run_dir("again") / "state.json").write_text(json.dumps(state))
    assert "The run again is complete." in cutover.succeed(**run).words
    assert target.get("between") == b"the application's"


def make(cutover: Cutover, group: str, **options: Any) -> list[Any]:
    """Make an ElastiCache as its user would beforehand, and give back clients of its primaries."""
    client = cutover.aws.client("elasticache")
    client.create_replication_group(
        ReplicationGroupId=group,
        ReplicationGroupDescription="a test",
        CacheNodeType="cache.r7g.large",
        **options,
    )
    client.get_waiter("replication_group_available").wait(ReplicationGroupId=group, WaiterConfig={"Delay": 1})
    return Side(cutover.info, cutover.groups()[group], 0).primaries


def takes(shard: Any, key: str) -> bool:
    """Whether this shard has the slot of the key, which it then holds."""
    try:
        return bool(shard.set(key, "x"))
    except ResponseError:
        return False
