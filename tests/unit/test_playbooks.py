# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks must not do, though the lab, where all hosts are one, would not mind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"


def all_tasks(found: Any) -> Iterator[dict[str, Any]]:
    """The tasks of plays and blocks, to any depth."""
    for each in found if isinstance(found, list) else []:
        yield each
        for room in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from all_tasks(each.get(room))


@pytest.mark.parametrize("path", [*PLAYBOOKS.glob("*.yml"), *PLAYBOOKS.glob("tasks/*.yml")], ids=lambda path: path.stem)
def test_an_include_leaves_other_hosts_their_python(path: Path) -> None:
    """What is in `vars` of an include overrules the tasks in it, those too that are delegated and name a Python."""
    tasks = list(all_tasks(yaml.safe_load(path.read_text())))
    assert tasks
    includes = [task for task in tasks if {"ansible.builtin.include_role", "ansible.builtin.include_tasks"} & {*task}]
    assert not [task["name"] for task in includes if "ansible_python_interpreter" in task.get("vars", {})]
