# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of one playbook against a lab, in the checkout, as an operator starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from integration.cutover import TOP, Outcome

INVENTORY = TOP / "tests/lab/inventory"


class Playbook:
    """One playbook, and the lab that it meets: a file of the collection, or plays of the test's own."""

    def __init__(self, lab_dir: str | Path, playbook: Path, *inventories: Path) -> None:
        self.lab_dir, self.playbook = str(lab_dir), playbook
        self.inventories = inventories or (INVENTORY,)

    def run(self, *arguments: str, **extra: Any) -> Outcome:
        """Run it to its end with `-e` for each of `extra`."""
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", str(self.playbook)),
                *(f"--inventory={each}" for each in self.inventories),
                f"--extra-vars={json.dumps(extra)}",
                *arguments,
            ],
            cwd=TOP,
            env={**os.environ, "KEYFERRY_LAB_DIR": self.lab_dir, "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Outcome(ended.returncode, ended.stdout)

    def succeed(self, *arguments: str, **extra: Any) -> Outcome:
        outcome = self.run(*arguments, **extra)
        assert outcome.code == 0, outcome.output
        return outcome

    def refuse(self, *words: str, arguments: tuple[str, ...] = (), **extra: Any) -> Outcome:
        """Run it where it must fail with all of these words."""
        outcome = self.run(*arguments, **extra)
        assert outcome.code != 0, outcome.output
        missing = [word for word in words if word not in outcome.words]
        assert not missing, f"{missing} not in: {outcome.output}"
        return outcome


def write_plays(path: Path, *plays: dict[str, Any]) -> Path:
    """A playbook of the test's own; JSON is YAML."""
    path.write_text(json.dumps(plays))
    return path


def other_host(directory: Path, name: str) -> Path:
    """An inventory with one more host, whose own Python notes in python.log that it is used."""
    python = directory / "python"
    python.write_text(f'#!/bin/sh\necho used >> "{directory}/python.log"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    variables = {"ansible_connection": "local", "ansible_python_interpreter": str(python)}
    return write_host(directory, name, variables)


def host_that_is_down(directory: Path, name: str) -> Path:
    """An inventory with one more host, to which ssh finds no way."""
    ssh = directory / "ssh"
    ssh.write_text("#!/bin/sh\necho no route to host >&2\nexit 255\n")
    ssh.chmod(0o755)
    return write_host(directory, name, {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh)})


def write_host(directory: Path, name: str, variables: dict[str, str]) -> Path:
    inventory = directory / f"{name}.json"
    inventory.write_text(json.dumps({"application": {"hosts": {name: variables}}}))
    return inventory
