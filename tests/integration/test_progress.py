# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user sees while a module runs: by ansible-playbook, on a terminal and through a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.delay import delayed
from support.keyspaces import login
from support.modules import run_module
from support.terminal import Terminal

from lab.nodes import RedisServer, wait_for

KEYS = 150
# Each command waits for its reply, so that a load takes at least this long.
ROUND_TRIP_S = 0.02
LINE = re.compile(
    r"resp_load on here: (\d+) of 150 commands \(\d+%\), (\d+ bytes|[\d.]+ KiB), \d+ a second(, 0:\d\d left)?"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def port(server: RedisServer) -> Iterator[int]:
    with delayed(server.port, ROUND_TRIP_S) as far:
        yield far


@pytest.fixture(scope="module")
def src(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    with server.client(1) as client:
        client.execute_command("DEBUG", "POPULATE", KEYS)
    dest = str(tmp_path_factory.mktemp("dump") / "d.resp")
    assert run_module("resp_dump", **login(server), db=1, dest=dest, workers=1)["keys"] == KEYS
    return dest


class Playbook:
    """A play with tasks of this collection, run by ansible-playbook."""

    def __init__(self, directory: Path, port: int, src: str) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self._port = port
        self._load = {"src": src, "batch_size": 1, "workers": 1}

    def load(self, **options: Any) -> dict[str, Any]:
        """A task that loads the dump, slowly."""
        return {"keyferry.redis.resp_load": {**self._load, **options}}

    def command(self, *tasks: dict[str, Any]) -> list[str]:
        play = {
            "hosts": "here",
            "gather_facts": False,
            # What an action plugin must leave to ansible-core.
            "module_defaults": {"group/keyferry.redis.redis": {"login_host": "127.0.0.1", "login_port": self._port}},
            "tasks": list(tasks),
        }
        path = self.directory / "play.yml"
        path.write_text(yaml.safe_dump([play], sort_keys=False))
        inventory = self.directory / "hosts"
        inventory.write_text(f"here ansible_connection=local ansible_python_interpreter={sys.executable}\n")
        return [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(path)]

    def environment(self, **variables: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KEYFERRY_")}
        fixed = {"TMPDIR": str(self.temporary), "KEYFERRY_PROGRESS_INTERVAL": "0.3", "ANSIBLE_NOCOLOR": "1"}
        fixed["ANSIBLE_CALLBACK_RESULT_FORMAT"] = "yaml"
        return {**inherited, **fixed, **variables}

    def through_a_pipe(self, *tasks: dict[str, Any], arguments: tuple[str, ...] = (), **variables: str) -> str:
        done = subprocess.run(
            [*self.command(*tasks), *arguments],
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        return done.stdout

    def on_a_terminal(self, *tasks: dict[str, Any], **variables: str) -> Terminal:
        return Terminal(self.command(*tasks), self.environment(**variables))


@pytest.fixture
def playbook(tmp_path: Path, port: int, src: str) -> Playbook:
    return Playbook(tmp_path, port, src)


def test_lines_come_on_a_terminal(playbook: Playbook) -> None:
    seen = playbook.on_a_terminal(playbook.load()).end()
    done = [int(match[1]) for match in LINE.finditer(seen)]
    assert len(done) >= 2 and done == sorted(done) and 0 < done[-1] < KEYS, seen
    assert "changed=1" in seen and "failed=0" in seen
    # The file that was looked at is gone.
    assert not list(playbook.temporary.glob("keyferry.*"))


def test_none_come_through_a_pipe(playbook: Playbook) -> None:
    seen = playbook.through_a_pipe(playbook.load())
    assert "changed=1" in seen and "resp_load on" not in seen


def test_none_come_where_nobody_wants_them(playbook: Playbook) -> None:
    seen = playbook.on_a_terminal(playbook.load(), KEYFERRY_PROGRESS="never").end()
    assert "changed=1" in seen and "resp_load on" not in seen


def test_lines_come_with_a_file_of_the_users_and_become(playbook: Playbook) -> None:
    """Module and look both go by the become method, here one that writes down that it was used."""
    become = playbook.directory / "become"
    used = playbook.directory / "used"
    # sudo -H -S -n -u USER /bin/sh -c COMMAND
    become.write_text(f'#!/bin/sh\necho "$@" >> {used}\nwhile [ "$1" != -u ]; do shift; done\nshift 2\nexec "$@"\n')
    become.chmod(0o755)
    own = playbook.directory / "progress.json"
    task = playbook.load(progress_file=str(own))
    task |= {"become": True, "vars": {"ansible_become_exe": str(become), "keyferry_progress": "always"}}
    seen = playbook.through_a_pipe(task, ANSIBLE_BECOME_ALLOW_SAME_USER="1")
    assert LINE.search(seen) and "changed=1" in seen, seen
    assert '"state": "done"' in own.read_text()
    calls = used.read_text()
    assert f"; cat {own}\n" in calls and f"; {sys.executable}" in calls


def test_what_is_left_to_ansible_is_as_without_the_plugin(playbook: Playbook) -> None:
    """Check mode, async and a failure are as without the plugin; no_log still hides the result."""
    tasks = [
        {"name": "checks", "check_mode": True, **playbook.load()},
        {"name": "alone", "async": 300, "poll": 1, **playbook.load()},
        {"name": "secret", "no_log": True, **playbook.load(batch_size=1000)},
        {"name": "fails", "ignore_errors": True, **playbook.load(db=99)},
    ]
    seen = playbook.through_a_pipe(*tasks, arguments=("-v",), KEYFERRY_PROGRESS="always")
    parts = dict(zip(*[iter(re.split(r"TASK \[(\w+)\] .*", seen)[1:])] * 2, strict=True))
    assert "replies: 0" in parts["checks"] and "resp_load on" not in parts["checks"]
    assert "replies: 150" in parts["alone"] and "resp_load on" not in parts["alone"]
    assert "censored" in parts["secret"] and "replies" not in parts["secret"]
    assert "DB index is out of range" in parts["fails"]
    assert "ok=4" in seen and "changed=3" in seen and "ignored=1" in seen


def test_an_interrupt_ends_the_module_too(playbook: Playbook, server: RedisServer) -> None:
    terminal = playbook.on_a_terminal(playbook.load(), KEYFERRY_PROGRESS_INTERVAL="0.2")
    while not LINE.search(terminal.seen):
        assert terminal.read(), terminal.seen
    terminal.press(b"\x03")
    assert "changed=" not in terminal.end()

    def nobody_loads() -> bool:
        with server.client() as client:
            return not [one for one in client.client_list() if one["name"] == "keyferry"]

    wait_for(nobody_loads, "the end of the module", timeout=10)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"KEYFERRY_PROGRESS": "maybe"}, "keyferry_progress is maybe; it must be one of auto, always, never"),
        ({"KEYFERRY_PROGRESS_INTERVAL": "0"}, "keyferry_progress_interval is 0; it must be a number of seconds above"),
    ],
)
def test_a_setting_that_is_wrong_is_told(playbook: Playbook, variables: dict[str, str], message: str) -> None:
    seen = playbook.through_a_pipe(playbook.load(), **variables)
    assert message in seen and "failed=1" in seen
