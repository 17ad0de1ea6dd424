# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_follow between real servers: writers that know every write, and all that can go wrong on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINES
from redis import ResponseError
from redis.cluster import RedisCluster
from support.clusters import of_all, start_cluster
from support.following import Follower, Writer, following
from support.keyspaces import Contents, contents, login, run_id
from support.modules import run_module

from lab.nodes import RedisServer, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]
SOURCE_DB, TARGET_DB = 1, 2
KEYS = 2000


def sides(source: RedisServer, target: RedisServer, target_db: int = TARGET_DB) -> dict[str, Any]:
    return {**login(source), **login(target, "target_login_"), "db": SOURCE_DB, "target_db": target_db}


@pytest.fixture
def pair(start_server: Start) -> tuple[RedisServer, RedisServer]:
    """A source whose database 1 holds keys, and whose database 0 others write to; an empty target."""
    source = start_server()
    fill(("127.0.0.1", source.port), KEYS, SOURCE_DB)
    return source, start_server()


@pytest.fixture
def follower(pair: tuple[RedisServer, RedisServer], tmp_path: Path) -> Iterator[Follower]:
    with following(tmp_path, **sides(*pair)) as found:
        yield found


def lasting(found: Contents) -> Contents:
    """What a database holds, but for what expires meanwhile."""
    soon = time.time() * 1000 + 60_000
    return {key: (value, expiry) for key, (value, expiry) in found.items() if expiry < 0 or expiry > soon}


def use(client: Any) -> None:
    """What an application does with a target that it was pointed at: new keys, changed keys, removed keys."""
    for number in range(300):
        client.set(f"app:{number}", number)
        client.set(f"counted:{number}", "by the application")
        client.delete(f"closed:{number}")


def prepare(client: Any) -> None:
    for number in range(300):
        client.set(f"counted:{number}", "at the source")
        client.set(f"closed:{number}", "at the source")


def move(source: RedisServer, follower: Follower, target: Any, of_target: Callable[[], Contents]) -> dict[str, Any]:
    """Have writers at the source, and the application at the target once it is ready; see that nothing is lost."""
    prepare(source.client(SOURCE_DB))
    # Another database is written to as well, under the same names.
    with Writer(source.client(SOURCE_DB)) as writer, Writer(source.client(0), seed=2):
        follower.ready()
        at_switch = len(writer.log)
        use(target)
        wait_for(lambda: len(writer.log) > at_switch + 3000, "more writes")
    result = follower.stopped()
    assert (result["lost"], result["settled"], result["conflicts"]) == (False, True, 0), result
    assert result["followed"] > 1000 and result["copied"] > 500 and result["deleted"] > 20, result
    ours, theirs = lasting(contents(source, SOURCE_DB)), lasting(of_target())
    for number in range(300):
        assert target.get(f"app:{number}") == b"%d" % number
        assert target.get(f"counted:{number}") == b"by the application"
        assert not target.exists(f"closed:{number}")
    changed = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert {key.partition(b":")[0] for key in changed} == {b"app", b"counted", b"closed"}
    assert follower.result()["changed"]
    return result


def test_nothing_is_lost_while_the_application_moves(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    source, target = pair
    result = move(source, follower, target.client(TARGET_DB), lambda: contents(target, TARGET_DB))
    assert result["round"]["missing"] >= KEYS


def test_nothing_is_lost_from_redis_to_valkey(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path / "source", "redis") as source,
        RedisServer(tmp_path / "target", "valkey") as target,
        following(tmp_path, **sides(source, target)) as follower,
    ):
        move(source, follower, target.client(TARGET_DB), lambda: contents(target, TARGET_DB))


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_lost_into_a_cluster(engine: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        nodes = start_cluster(stack, tmp_path / "cluster", engine)
        source = stack.enter_context(RedisServer(tmp_path / "source", engine))
        fill(("127.0.0.1", source.port), KEYS, SOURCE_DB)
        follower = stack.enter_context(following(tmp_path, **sides(source, nodes[0], target_db=0)))
        target = stack.enter_context(RedisCluster("127.0.0.1", nodes[1].port))
        move(source, follower, target, lambda: of_all(nodes))


def test_reads_from_a_replica(pair: tuple[RedisServer, RedisServer], start_server: Start, tmp_path: Path) -> None:
    source, target = pair
    replica = start_server("--replicaof", f"127.0.0.1 {source.port}")
    wait_for(lambda: is_in_step(replica), "the replica")
    with following(tmp_path, **sides(replica, target)) as follower:
        move(source, follower, target.client(TARGET_DB), lambda: contents(target, TARGET_DB))
        assert source.client().info("commandstats").get("cmdstat_dump") is None
    for is_flushed in (False, True):
        with following(tmp_path, **sides(replica, target)) as follower:
            follower.ready()
            load_anew(replica, source, is_flushed)
            wait_for(lambda follower=follower: follower.process.poll() is not None, "its end")
            assert "loaded anew from its primary" in follower.stopped()["lost_reason"]


def test_does_not_settle_on_a_replica_whose_primary_is_silent(
    pair: tuple[RedisServer, RedisServer], start_server: Start, tmp_path: Path
) -> None:
    """A write to the primary would not have come."""
    source, target = pair
    replica = start_server("--replicaof", f"127.0.0.1 {source.port}")
    wait_for(lambda: is_in_step(replica), "the replica")
    with following(tmp_path, **sides(replica, target), settle_timeout=3) as follower:
        follower.ready()
        os.kill(source.pid, signal.SIGSTOP)
        try:
            result = follower.stopped()
        finally:
            os.kill(source.pid, signal.SIGCONT)
        assert (result["settled"], result["lost"]) == (False, False), result
    source.kill()
    wait_for(lambda: not is_in_step(replica), "the end of the link")
    compared = run_module("redis_compare", **sides(replica, target))
    dumped = run_module("resp_dump", **login(replica), db=SOURCE_DB, dest=str(tmp_path / "d"))
    for result in (compared, dumped):
        assert result["failed"] and "is a replica that has lost its primary" in result["msg"], result


class TestStreams:
    """A server tells nobody what consumer groups do."""

    @pytest.fixture
    def streams(self, pair: tuple[RedisServer, RedisServer]) -> tuple[Any, Any]:
        """Both databases; the source has streams with a group that has read and not acknowledged two entries."""
        ours = pair[0].client(SOURCE_DB)
        for key in (b"stream", b"other", b"left"):
            for at in range(1, 6):
                ours.xadd(key, {"n": at}, id=f"{at}-1")
            ours.xgroup_create(key, "g", 0)
            ours.xreadgroup("g", "worker", {key: ">"}, count=2)
        return ours, pair[1].client(TARGET_DB)

    def test_what_groups_do_at_the_source_goes_along(
        self, pair: tuple[RedisServer, RedisServer], streams: tuple[Any, Any], follower: Follower
    ) -> None:
        ours, theirs = streams
        follower.ready()
        ours.xack("stream", "g", "1-1")
        ours.xreadgroup("g", "worker", {"stream": ">"}, count=1)
        # Those that came later, too, and groups that are made or removed.
        ours.xadd("new", {"n": 1}, id="1-1")
        wait_for(lambda: theirs.exists("new"), "the new stream")
        ours.xgroup_create("new", "h", 0)
        ours.xgroup_destroy("other", "g")
        # Of that no number tells.
        ours.xclaim("left", "g", "worker", 0, ["2-1"], retrycount=7)
        result = follower.stopped()
        assert (result["settled"], result["lost"], result["conflicts"]) == (True, False, 0), result
        assert run_module("redis_compare", **sides(*pair))["equal"]
        assert theirs.xpending("stream", "g")["pending"] == 2
        assert theirs.xpending_range("left", "g", "-", "+", 5)[1]["times_delivered"] == 7

    def test_one_that_expires_and_comes_again_is_not_the_applications(
        self, streams: tuple[Any, Any], follower: Follower
    ) -> None:
        ours, theirs = streams
        follower.ready()
        ours.pexpire("stream", 400)
        wait_for(lambda: not theirs.exists("stream") and not ours.exists("stream"), "its end")

        def looks() -> int:
            return sum(facts["calls"] for name, facts in theirs.info("commandstats").items() if "xinfo" in name)

        # The groups are looked at once they are gone: that this is not taken for a write is what is tested.
        before = looks()
        wait_for(lambda: looks() > before, "a look at the groups")
        ours.xadd("stream", {"n": 7}, id="7-1")
        result = follower.stopped()
        assert (result["settled"], result["lost"], result["conflicts"]) == (True, False, 0), result
        assert theirs.xlen("stream") == 1

    def test_what_the_application_has_done_by_then_stays(self, streams: tuple[Any, Any], follower: Follower) -> None:
        ours, theirs = streams
        follower.ready()
        theirs.xack("stream", "g", "1-1", "2-1")
        # The source is written to as well: its other instances are not switched yet.
        ours.xadd("stream", {"n": 6}, id="6-1")
        ours.xadd("other", {"n": 6}, id="6-1")
        result = follower.stopped()
        assert (result["settled"], result["lost"], result["conflicts"]) == (True, False, 1), result
        assert theirs.xpending("stream", "g")["pending"] == 0
        assert (theirs.xlen("stream"), theirs.xlen("other")) == (5, 6)


def is_in_step(replica: RedisServer) -> bool:
    facts = replica.client().info("replication")
    return bool(facts["master_link_status"] == "up" and not facts["master_sync_in_progress"])


def load_anew(replica: RedisServer, primary: RedisServer, is_flushed: bool) -> None:
    """A full resynchronization, with what was written while it was no replica."""
    with replica.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
        # So that it cannot go on where it was.
        client.set("its own", 1)
        if is_flushed:
            primary.client(SOURCE_DB).flushdb()
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)


def test_only_the_last_writes_are_missing_where_it_ends_under_load(
    pair: tuple[RedisServer, RedisServer], tmp_path: Path
) -> None:
    source, target = pair
    with (
        following(tmp_path, **sides(*pair), settle_seconds=600, settle_timeout=5) as follower,
        Writer(source.client(SOURCE_DB)) as writer,
    ):
        follower.ready()
        at_ready = len(writer.log)
        wait_for(lambda: len(writer.log) > at_ready + 2000, "more writes")
        asked_at = len(writer.log)
        result = follower.stopped()
        assert (result["lost"], result["settled"]) == (False, False)
        writer.end()
        compared = run_module("redis_compare", **sides(*pair))
        assert "failed" not in compared, compared
        ours, theirs = lasting(contents(source, SOURCE_DB)), lasting(contents(target, TARGET_DB))
    differing = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert differing <= set(writer.log[asked_at:])
    assert set(writer.log[at_ready:asked_at]) - differing


def test_what_both_write_to_stays_the_applications(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    """As fast as both can, on the same few keys, each write of its own value."""
    source, target = pair
    last: dict[bytes, bytes | None] = {}
    # Where keys expire all the time, it cannot always be told who has removed one.
    with Writer(source.client(SOURCE_DB), "both", keys=20, expiring=False) as writer:
        follower.ready()
        client = target.client(TARGET_DB)
        for number in range(20_000):
            key = writer.log[-1 - number % 50]
            if number % 7:
                last[key] = b"application %d" % number
                client.set(key, last[key])
            elif client.delete(key):
                last[key] = None
            if number % 100 == 0:
                assert follower.process.poll() is None
                wrong = [each for each in last if kept(client, each) != last[each]]
                assert not wrong, (number, wrong)
    result = follower.stopped()
    assert not result["lost"], result
    assert {key: kept(client, key) for key in last} == last
    ours, theirs = contents(source, SOURCE_DB), contents(target, TARGET_DB)
    # Others may have been in conflict before, and are gone from the source.
    assert result["conflicts"] >= len([key for key in last if key in ours and ours[key] != theirs.get(key)]) > 10
    assert len(result["examples"]["conflicts"]) == 10
    assert "application" not in json.dumps(result)


def kept(client: Any, key: bytes) -> bytes | None:
    """The value of a string; another type is the source's."""
    try:
        return client.get(key)
    except ResponseError as error:
        return str(error).encode()


def test_what_expires_and_comes_again_is_no_conflict(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    source, target = pair
    ours = source.client(SOURCE_DB)
    follower.ready()
    with Writer(target.client(TARGET_DB), "mine"):
        for turn in range(40):
            ours.mset({f"counter:{number}": turn for number in range(50)})
            for number in range(50):
                ours.pexpire(f"counter:{number}", 40)
            # For them to expire: that it takes its time is what is tested.
            time.sleep(0.05)
        ours.mset({f"counter:{number}": "last" for number in range(50)})
    result = follower.stopped()
    assert (result["conflicts"], result["lost"]) == (0, False), result
    assert target.client(TARGET_DB).mget([f"counter:{number}" for number in range(50)]) == [b"last"] * 50


def test_ends_at_once_where_that_is_asked(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    """The source is written to all the time, and the one that follows would wait for ten minutes."""
    follower.ready()
    with Writer(pair[0].client(SOURCE_DB)):
        result = follower.ask("stopped", settle_timeout=0)
    assert (result["settled"], result["lost"]) == (False, False), result
    assert follower.result()["settled"] is False


def test_does_not_settle_before_all_names_are_looked_at(
    pair: tuple[RedisServer, RedisServer], follower: Follower
) -> None:
    """So many names come from another database that looking at them takes longer than the source has to be quiet."""
    follower.ready()
    for at in range(0, 100_000, 10_000):
        pair[0].client(0).mset({f"elsewhere:{at + number}": 1 for number in range(10_000)})
    pair[0].client(SOURCE_DB).mset({f"here:{number}": 1 for number in range(100)})
    result = follower.stopped()
    assert (result["settled"], result["lost"]) == (True, False), result
    assert result["followed"] >= 100_100
    assert pair[1].client(TARGET_DB).exists(*(f"here:{number}" for number in range(100))) == 100


def test_large_values_and_odd_names_are_followed(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    source, target = pair
    follower.ready()
    ours = source.client(SOURCE_DB)
    ours.mset({b"large:%d" % number: b"\x00\xff" * (3 << 20) for number in range(3)})
    ours.mset({b"": b"empty", b"\r\n": b"\r\n", b"\x00\xff{": b"", b"ElastiCacheMasterReplicationTimestamp": b"1"})
    ours.hset("many", mapping={f"field{number}": number for number in range(20_000)})
    follower.stopped()
    assert contents(target, TARGET_DB) == contents(source, SOURCE_DB)


def test_a_connection_that_breaks_is_told(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    for server in pair:
        follower.ready()
        with server.client() as client:
            # Those that track; the newest one of the source, any of the target.
            trackers = [each["id"] for each in client.client_list() if "t" in each["flags"]]
            client.client_kill_filter(_id=trackers[-1])
        wait_for(lambda: follower.process.poll() is not None, "its end")
        result = follower.stopped()
        assert result["lost"] and str(server.port) in result["lost_reason"], result
        assert (result["settled"], result["changed"]) == (False, False)
        gone = follower.ask("ready", timeout=0)
        assert gone["failed"] and gone["running"] is False and "the connection broke" in gone["msg"]
        follower.start()


def test_a_flush_is_told_but_not_another_databases(pair: tuple[RedisServer, RedisServer], follower: Follower) -> None:
    source, target = pair
    follower.ready()
    source.client(0).set("other", 1)
    source.client(0).flushdb()
    source.client(SOURCE_DB).set("after", 1)
    wait_for(lambda: target.client(TARGET_DB).exists("after"), "what was written after it")
    source.client(SOURCE_DB).flushdb()
    wait_for(lambda: follower.process.poll() is not None, "its end")
    assert "may have been flushed" in follower.stopped()["lost_reason"]
    # Nothing of that was done to the target.
    assert target.client(TARGET_DB).dbsize() >= KEYS
    fill(("127.0.0.1", source.port), KEYS, SOURCE_DB)
    follower.start()
    follower.ready()
    target.client(TARGET_DB).flushdb()
    wait_for(lambda: follower.process.poll() is not None, "its end")
    assert "was flushed by somebody else" in follower.stopped()["lost_reason"]
    assert target.client(TARGET_DB).dbsize() == 0


def test_keeps_no_more_names_than_it_may(pair: tuple[RedisServer, RedisServer], tmp_path: Path) -> None:
    source, target = pair
    many = {f"many:{number}": number for number in range(6000)}
    with following(tmp_path, **sides(*pair), max_keys=5000) as follower:
        follower.ready()
        target.client(TARGET_DB).mset(many)
        wait_for(lambda: follower.process.poll() is not None, "its end")
        assert "max_keys=5000" in follower.stopped()["lost_reason"]
        follower.start()
        follower.ready()
        # In one turn of the event loop, so that nothing of it can be looked at before.
        source.client(0).mset(many)
        wait_for(lambda: follower.process.poll() is not None, "its end")
        assert "more than max_keys=5000 different keys" in follower.stopped()["lost_reason"].lower()


def test_killed_at_any_point_it_is_told_and_can_be_started_again(
    pair: tuple[RedisServer, RedisServer], follower: Follower
) -> None:
    follower.ready()
    again = run_module("redis_follow", **sides(*pair), progress_file=str(follower.file))
    assert again["failed"] and "Another one follows already" in again["msg"]
    assert follower.ask("ready")["followed"] == 0
    os.kill(follower.process.pid, signal.SIGKILL)
    follower.process.wait()
    gone = follower.ask("ready", timeout=0)
    assert gone["failed"] and gone["running"] is False and "was killed" in gone["msg"]
    result = follower.stopped()
    assert result["lost"] and "was killed" in result["lost_reason"] and result["round"]["compared"] == KEYS
    follower.start()
    assert follower.ready()["round"]["equal"]
    assert not follower.stopped()["lost"]
    assert follower.result()["changed"] is False


def test_asked_to_end_while_it_compares_it_tells_so(pair: tuple[RedisServer, RedisServer], tmp_path: Path) -> None:
    with following(tmp_path, **sides(*pair), max_keys_per_second=500) as follower:
        wait_for(follower.file.exists, "its beginning")
        early = follower.ask("ready", timeout=0)
        assert early["failed"] and early["running"] and "not ready yet" in early["msg"]
        lost = follower.stopped()
        assert lost["lost"] and (lost["copied"], lost["conflicts"], lost["settled"]) == (0, 0, False), lost
        assert lost["examples"] == {"conflicts": []} and "asked to end before" in lost["lost_reason"]
        assert "asked to end before the comparison was done" in follower.result()["msg"]
    with following(tmp_path, **sides(*pair), timeout=0) as follower:
        assert "within timeout=0 seconds" in follower.result()["lost_reason"]


def test_says_what_it_needs(start_server: Start, tmp_path: Path) -> None:
    rights = "~* &* +@read +@write +@connection +info +cluster|info"
    source = start_server(config=[f"user app on >secret {rights} -client|tracking"])
    target = start_server()
    file = {"progress_file": str(tmp_path / "follow.json")}
    for pair, prefix in (((source, target), "login_"), ((target, source), "target_login_")):
        user = {f"{prefix}user": "app", f"{prefix}password": "secret"}
        for check in (False, True):
            refused = run_module("redis_follow", _check=check, **sides(*pair), **user, **file)
            assert refused["failed"] and refused["supported"] is False, refused
            assert f":{source.port} " in refused["msg"] and "+client|tracking" in refused["msg"]
            assert "secret" not in refused["msg"]
    assert "supported" not in run_module("redis_follow", state="ready", timeout=0, **file)
    assert "must be at least 0" in run_module("redis_follow", **sides(source, target), **file, timeout=-1)["msg"]
    nothing = {"progress_file": str(tmp_path / "nothing.json"), "state": "stopped"}
    for check in (False, True):
        assert "nothing was started" in run_module("redis_follow", _check=check, **nothing)["msg"]


def test_needs_no_more_rights_than_it_says(start_server: Start, tmp_path: Path) -> None:
    reading = "~* +@read +@connection +time +info +cluster|info +client|tracking"
    source = start_server(config=[f"user app on >secret {reading}"])
    target = start_server(config=[f"user app on >secret {reading} +@write +@transaction +cluster|slots"])
    users = {f"{prefix}login_user": "app" for prefix in ("", "target_")}
    users |= {f"{prefix}login_password": "secret" for prefix in ("", "target_")}
    fill(("127.0.0.1", source.port), KEYS, SOURCE_DB)
    with following(tmp_path, **sides(source, target), **users) as follower:
        move(source, follower, target.client(TARGET_DB), lambda: contents(target, TARGET_DB))


def test_check_mode_writes_nothing(pair: tuple[RedisServer, RedisServer], tmp_path: Path) -> None:
    checked = run_module("redis_follow", _check=True, **sides(*pair), progress_file=str(tmp_path / "follow.json"))
    assert checked["changed"] is False and not [*tmp_path.glob("follow.json*")]
    with following(tmp_path, **sides(*pair)) as follower:
        ready = follower.ready()
        assert "Another one follows already" in follower.ask("running", _check=True, **sides(*pair))["msg"]
        assert follower.ask("stopped", _check=True).keys() == ready.keys()
        done = follower.stopped()
        written = {path: path.read_bytes() for path in tmp_path.glob("follow.json*")}
        assert not follower.ask("running", _check=True, **sides(*pair))["changed"]
        assert {path: path.read_bytes() for path in tmp_path.glob("follow.json*")} == written
        again = follower.ask("stopped", _check=True)
        assert {**again, "elapsed": 0} == {**done, "elapsed": 0, "changed": False}


def test_never_writes_to_the_source(pair: tuple[RedisServer, RedisServer], tmp_path: Path) -> None:
    source, target = pair
    file = {"progress_file": str(tmp_path / "follow.json")}
    itself = run_module("redis_follow", **sides(source, source), **file)
    assert "would write to the source" in itself["msg"]
    protected = run_module("redis_follow", **sides(*pair), **file, protected_run_ids=[run_id(target)])
    assert "protected_run_ids" in protected["msg"]
    checked = run_module("redis_follow", _check=True, **sides(*pair), **file)
    assert checked["changed"] is False and target.client(TARGET_DB).dbsize() == 0
