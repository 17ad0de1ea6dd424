# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules on each Python that tests/setup.sh has found, the oldest with the oldest packages that are promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import TOP
from integration.plays import Playbook, write_plays
from support.keyspaces import login
from support.modules import aws_args

from lab import Lab
from lab.nodes import RedisServer
from lab.sample_data import fill

PYTHONS = sorted((TOP / ".build/pythons").iterdir(), key=lambda path: int(path.name.split(".")[1]))
KEYS = 500


def test_there_is_a_python_to_run_them_on() -> None:
    assert PYTHONS


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.name)
@pytest.mark.parametrize("engine", ["redis"])
def test_the_modules_do_their_work(
    python: Path, engine: str, redis_server: RedisServer, lab: Lab, tmp_path: Path
) -> None:
    with redis_server.client() as client:
        fill(client, KEYS, db=1)
    inventory = tmp_path / "hosts.json"
    variables = {"ansible_connection": "local", "ansible_python_interpreter": str(python / "bin/python")}
    inventory.write_text(json.dumps({"all": {"hosts": {"here": variables}}}))
    play = {
        "hosts": "here",
        "gather_facts": False,
        "module_defaults": {
            "group/keyferry.redis.redis": login(redis_server),
            "group/keyferry.redis.aws": aws_args(lab.info),
        },
        "tasks": tasks(tmp_path, redis_server, lab),
    }

    run = Playbook(tmp_path, write_plays(tmp_path / "play.json", play), inventory).succeed()

    assert "failed=0" in run.output and "WARNING" not in run.output


def tasks(directory: Path, server: RedisServer, lab: Lab) -> list[dict[str, Any]]:
    """There and back again: out of the server, through a file and S3, into another database, and compared."""
    dump, cut = str(directory / "1.resp"), str(directory / "1.rdb")
    bucket = {"bucket": lab.info["bucket"], "object": "1.rdb"}
    steps: list[tuple[str, dict[str, Any], str]] = [
        ("redis_keyspace_info", {}, f"done.databases['1']['keys'] == {KEYS}"),
        ("resp_dump", {"db": 1, "dest": dump}, f"done['keys'] == {KEYS}"),
        ("resp_load", {"src": dump, "db": 2}, f"done['keys'] == {KEYS}"),
        (
            "redis_compare",
            {**login(server, "target_login_"), "db": 1, "target_db": 2, "mode": "full"},
            "done.equal",
        ),
        ("redis_bgsave", {}, "done.size > 0"),
        ("rdb_extract", {"src": str(server.rdb), "db": 1, "dest": cut}, f"done['keys'] == {KEYS}"),
        ("s3_transfer", {**bucket, "mode": "put", "path": cut}, "done is changed"),
        ("elasticache_replication_group_info", {}, "done.replication_groups | length > 0"),
        ("redis_promote_db", {"db": 1}, f"done['keys'] == {KEYS}"),
        ("redis_flushdb", {"db": 0}, f"done.flushed['0'] == {KEYS}"),
    ]
    return [
        task
        for module, options, truth in steps
        for task in (
            {"name": module, f"keyferry.redis.{module}": options, "register": "done"},
            {"name": f"{module} has done it", "ansible.builtin.assert": {"that": truth}},
        )
    ]
