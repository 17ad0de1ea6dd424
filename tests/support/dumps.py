# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of resp_dump and resp_load share: how to run them, and what is in a dump."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.keyspaces import login
from support.modules import run_module

from ansible_collections.keyferry.redis.plugins.module_utils import dump_file, resp
from lab.nodes import RedisServer


def dump(server: RedisServer, dest: Path, **options: Any) -> dict[str, Any]:
    """Database 1 of a server, by one connection where the test says nothing else."""
    return run_module("resp_dump", **{**login(server), "db": 1, "dest": str(dest), "workers": 1, **options})


def must_dump(server: RedisServer, dest: Path, **options: Any) -> dict[str, Any]:
    """As dump, where that is not what is tested."""
    result = dump(server, dest, **options)
    assert not result.get("failed"), result
    return result


def load(server: RedisServer, src: Path, **options: Any) -> dict[str, Any]:
    return run_module("resp_load", **{**login(server), "src": str(src), **options})


def commands_of(path: Path) -> Iterator[list[bytes]]:
    """The arguments of every command of a dump but its marks, found by the file's own index of blocks."""
    data = path.read_bytes()
    for block in dump_file.open_dump(str(path)).blocks:
        position = block.offset
        for _command in range(block.commands):
            found = resp.read_command(data, position, len(data))
            yield [data[slice(*argument)] for argument in found.arguments]
            position = found.end


def keys_of(path: Path) -> list[bytes]:
    """The keys of a dump in the order of its commands."""
    return [arguments[1] for arguments in commands_of(path)]


def many(server: RedisServer, count: int, db: int = 1) -> None:
    """Short keys in great number, by the server's own means."""
    with server.client(db) as client:
        client.execute_command("DEBUG", "POPULATE", count)
