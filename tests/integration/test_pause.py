# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the cutover waits before a phase: for who sits at the terminal, or for a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import TOP
from integration.plays import write_plays
from support.terminal import Terminal

PROMPT = "type switch and press Enter"
# What ansible-runner, and so AWX, sets.
RUNNER = {"RUNNER_OMIT_EVENTS": "False"}
Wait = Callable[..., Terminal]


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    path = tmp_path / "runs/nightly/continue-switch"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def wait(tmp_path: Path) -> Wait:
    """Begin to wait before the switch, on a terminal, in this environment and with `-e` for each of `extra`."""
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(TOP / "playbooks/vars/migrate_db.yml")],
        "tasks": [
            {"ansible.builtin.include_tasks": str(TOP / "playbooks/tasks/pause.yml"), "vars": {"phase": "switch"}}
        ],
    }
    playbook = str(write_plays(tmp_path / "play.json", play))
    given = {"source_replication_group_id": "shared-redis", "src_db": 1, "run_id": "nightly"}
    given |= {"migration_host_dir": str(tmp_path), "pause_timeout": 30}

    def begin(environment: dict[str, str], **extra: Any) -> Terminal:
        command = [sys.executable, "-m", "ansible", "playbook", playbook, "-i", "localhost,", "-c", "local"]
        command += ["-e", json.dumps({"ansible_python_interpreter": sys.executable, **given, **extra})]
        inherited = {name: value for name, value in os.environ.items() if name not in RUNNER}
        return Terminal(command, {**inherited, "ANSIBLE_NOCOLOR": "1", **environment})

    return begin


@pytest.mark.parametrize(
    ("environment", "extra"), [({}, {}), (RUNNER, {"pause_prompt": True})], ids=["shell", "runner"]
)
def test_it_asks_at_the_terminal(wait: Wait, flag: Path, environment: dict[str, str], extra: dict[str, Any]) -> None:
    run = wait(environment, **extra)
    run.reach(PROMPT)
    run.answer(b"switch")
    assert "failed=0" in run.end()


@pytest.mark.parametrize(
    ("environment", "extra"), [(RUNNER, {}), ({}, {"pause_prompt": "false"})], ids=["runner", "told"]
)
def test_it_waits_for_the_file_alone(
    wait: Wait, flag: Path, environment: dict[str, str], extra: dict[str, Any]
) -> None:
    run = wait(environment, **extra)
    run.reach("[Wait for ")
    flag.touch()
    seen = run.end()
    assert "failed=0" in seen and PROMPT not in seen
    assert not flag.exists()
