# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role catch_up by itself: what becomes of it where the source cannot be followed, or is not any more."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import Outcome
from integration.plays import Playbook, write_plays

from lab.nodes import RedisServer, wait_for

Start = Callable[..., RedisServer]


@pytest.fixture
def engine() -> str:
    return "redis"


class Night:
    """A source with keys, an empty target, and the role run between them."""

    def __init__(self, directory: Path, source: RedisServer, target: RedisServer, **options: Any) -> None:
        self.directory, self.source, self.target = directory, source.client(1), target.client(0)
        self.file, self.log = directory / "follow.json", directory / "result.json"
        self.source.mset({f"key:{number}": "old" for number in range(500)})
        sides = {
            "source": {"host": "127.0.0.1", "port": source.port, "db": 1, **options},
            "target": {"host": "127.0.0.1", "port": target.port, "db": 0},
        }
        self.options = {**sides, "protected_run_ids": [], "progress_file": str(self.file)}
        self.options |= {"settle_seconds": 0.5, "settle_timeout": 60, "timeout": 300}

    def run(self, entry: str, **options: Any) -> Outcome:
        """Run the role from an entry point; its result is in `result` then."""
        role = {"name": "keyferry.redis.catch_up", "tasks_from": entry}
        values = {f"catch_up_{name}": value for name, value in {**self.options, **options}.items()}
        keep = {"content": "{{ catch_up_result | to_json }}", "dest": str(self.log), "mode": "0600"}
        tasks = [{"ansible.builtin.include_role": role, "vars": values}, {"ansible.builtin.copy": keep}]
        python = {"ansible_python_interpreter": sys.executable}
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": python, "tasks": tasks}
        path = write_plays(self.directory / "play.json", play)
        return Playbook(self.directory, path, Path("localhost,")).succeed()

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.log.read_text()))

    def kill(self) -> None:
        """Kill what follows, as a host that restarts does."""
        pid = json.loads(self.file.read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "it to be gone")

    def end(self) -> None:
        if self.file.exists() and "done" not in self.file.read_text():
            self.run("settle", settle_timeout=0, following=True)


@pytest.fixture
def night(tmp_path: Path, start_server: Start) -> Iterator[Night]:
    found = Night(tmp_path, start_server(), start_server())
    yield found
    found.end()


def test_what_cannot_be_followed_is_caught_up_in_rounds(tmp_path: Path, start_server: Start) -> None:
    source = start_server(config=["user app on >secret ~* +@all -client|tracking"])
    night = Night(tmp_path, source, start_server(), user="app", password="secret")
    told = night.run("follow").words
    assert "+client|tracking" in told and "So it is caught up in rounds" in told
    result = night.result
    assert (result["following"], len(result["rounds"]), result["rounds"][0]["missing"]) == (False, 1, 500), result
    assert "+client|tracking" in result["why"] and "secret" not in told
    assert night.target.dbsize() == 500
    told = night.run("settle", following=False).words
    assert "The source was not followed" in told and night.result == {"following": False}


def test_one_that_was_killed_before_the_switch_is_begun_anew(night: Night) -> None:
    night.run("follow")
    first = night.result["rounds"]
    night.kill()
    night.source.set("late", "write")
    told = night.run("follow", rounds_before=first).words
    assert "501 keys compared" in told
    result = night.result
    assert (result["following"], len(result["rounds"]), result["rounds"][1]["missing"]) == (True, 2, 1), result
    # And one that runs is left alone, whoever asks.
    pid = json.loads(night.file.read_text())["pid"]
    night.run("follow", rounds_before=first)
    assert json.loads(night.file.read_text())["pid"] == pid and len(night.result["rounds"]) == 2
    night.source.set("later", "write")
    night.run("settle", following=True)
    assert (night.result["lost"], night.result["settled"], night.target.dbsize()) == (False, True, 502)


def test_one_that_has_ended_before_the_switch_is_told(night: Night) -> None:
    night.run("follow")
    night.run("settle", following=True, switched_at=0)
    # Settled anew, of an earlier try: the application had moved before it ended, or moves only now.
    night.run("settle", following=True, switched_at=time.time() - 3600)
    assert (night.result["lost"], night.result["settled"]) == (False, True)
    told = night.run("settle", following=True, switched_at=time.time()).words
    assert "SOME WRITES MAY BE MISSING: it ended at 20" in told and night.result["lost"]


def test_one_of_an_earlier_try_is_ended_where_this_one_does_not_follow(night: Night) -> None:
    night.run("follow")
    night.run("main", earlier_file=str(night.file))
    assert json.loads(night.file.read_text())["state"] == "done"
    assert len(night.result["rounds"]) == 1 and night.target.dbsize() == 500


def test_one_that_was_killed_after_the_switch_is_told_and_repairs_nothing(night: Night) -> None:
    night.run("follow")
    night.kill()
    night.source.set("late", "write")
    night.target.set("key:1", "the application's")
    told = night.run("settle", following=True).words
    assert "SOME WRITES MAY BE MISSING: it was killed, or its host was restarted." in told
    assert "Compare both without repair" in told
    assert night.result["lost"] and night.target.get("key:1") == b"the application's"
