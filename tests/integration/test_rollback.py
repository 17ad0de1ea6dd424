# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook rollback on the record of a run. The tests are one story, in this order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import TOP
from integration.past_run import RUN, PastRun
from integration.plays import Playbook
from support.modules import LabModules

from lab import Lab
from lab.nodes import RedisServer


@pytest.fixture(scope="module")
def past(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> PastRun:
    """A run whose new ElastiCache got one key more since the switch, another value, and lost a key."""
    run = PastRun(LabModules(lab), tmp_path_factory.mktemp("past"))
    here, there = run.client(1), run.client(2)
    here.flushdb()
    there.flushdb()
    here.mset({f"key:{number}": "old" for number in range(50)})
    there.mset({f"key:{number}": "old" for number in range(49)} | {"key:7": "new", "key:new": "new"})
    return run


@pytest.fixture(scope="module")
def rollback(lab: Lab) -> Playbook:
    return Playbook(lab.info["dir"], TOP / "playbooks/rollback.yml")


def keys(past: PastRun) -> list[dict[Any, Any]]:
    return [{key: client.get(key) for key in client.scan_iter()} for client in (past.client(1), past.client(2))]


def test_it_must_know_which_run(rollback: Playbook, past: PastRun) -> None:
    rollback.refuse("Which run is meant? Give the database that it has moved, for example -e src_db=1")


def test_a_run_that_has_switched_nothing_is_refused(rollback: Playbook, past: PastRun) -> None:
    past.record(switch=None)
    rollback.refuse(
        f"There is no {past.run_dir.parent}/another/state.json", f"recorded there: {RUN}.", run_id="another"
    )
    rollback.refuse("so there is nothing to put back. Nothing was changed.", src_db=1)


def test_check_mode_says_what_it_would_do(rollback: Playbook, past: PastRun) -> None:
    past.switch()
    switched, state = past.url.read_text(), past.state()
    outcome = rollback.succeed("--check", src_db=1, compare="none")
    assert f"- file {past.url} localhost" in outcome.output
    assert "Would put it back" in outcome.words
    assert past.url.read_text() == switched != "redis://old:6379/1\n"
    assert past.state() == state and (past.run_dir / "switch.json").exists()


def test_what_differs_is_told(lab: Lab, past: PastRun) -> None:
    compare = Playbook(lab.info["dir"], TOP / "playbooks/compare.yml")
    before, state = keys(past), past.state()
    outcome = compare.succeed(src_db=1)
    for words in (
        f"Compared (full): 1 only on {RUN}, 1 only at the source, 1 on both with another value or TTL.",
        f"Some that are only on {RUN}: 'key:new'. Some that are only at the source: 'key:49'.",
        "Some that are different: 'key:7'.",
    ):
        # YAML doubles the quotes of a text that it quotes.
        assert words in outcome.words.replace("''", "'"), outcome.output
    assert (outcome.recap["changed"], keys(past), past.state()) == (0, before, state)
    past.record(preflight={"login": {"host": "127.0.0.1", "port": 1, "tls": False}})
    compare.refuse("Redis at 127.0.0.1:1, database 0: ", src_db=1)
    past.record(publish=None)
    compare.refuse(f"The run {RUN} has no new ElastiCache yet", "Nothing was changed.", src_db=1)
    past.record()


def test_an_interrupted_switch_is_put_back(rollback: Playbook, past: PastRun, tmp_path: Path) -> None:
    """Killed after the change and before its record: switch.json alone knows of it. What followed the source ends."""
    before = keys(past)
    with RedisServer(tmp_path / "target", "redis") as target, past.followed(target) as follower:
        follower.ready()
        outcome = rollback.succeed(src_db=1)
        assert not follower.result()["lost"]
    assert past.url.read_text() == "redis://old:6379/1\n"
    for words in (
        f"The application is on database 1 of shared-redis again. Writes that {RUN} got since the switch stay there",
        f"Keys now: 50 at the source, 50 on {RUN}.",
        f"1 only on {RUN}, 1 only at the source, 1 on both with another value or TTL.",
    ):
        assert words in outcome.words, outcome.output
    switch = past.state()["phases"]["switch"]
    assert json.loads((past.run_dir / "report.json").read_text())["outcome"] == "ROLLED BACK"
    assert not switch["switched"] and switch["rolled_back"] > 0 and switch["before"][0]["name"] == str(past.url)
    assert oct((past.run_dir / "state.json").stat().st_mode) == "0o100600"
    assert keys(past) == before


def test_run_again_it_changes_nothing(rollback: Playbook, past: PastRun) -> None:
    past.url.write_text("redis://elsewhere:6379/3\n")
    outcome = rollback.succeed(run_id=RUN, compare="none")
    assert f"The switch of the run {RUN} was put back already, at 20" in outcome.words
    assert outcome.recap["changed"] == 0
    assert past.url.read_text() == "redis://elsewhere:6379/3\n"


def test_a_source_that_does_not_answer_is_told(rollback: Playbook, past: PastRun) -> None:
    past.switch()
    past.record(preflight={"login": {"host": "127.0.0.1", "port": 1, "tls": False}})
    outcome = rollback.run(src_db=1, compare="none")
    assert outcome.code != 0 and "127.0.0.1:1" in outcome.words
    # It is put back all the same, and goes on from there.
    assert past.url.read_text() == "redis://elsewhere:6379/3\n"
    assert "rolled_back" not in past.state()["phases"]["switch"]
