# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the Redis modules share: how to reach a server of the lab, and what its databases hold."""

from __future__ import annotations

from typing import Any

from lab.nodes import RedisServer

Contents = dict[bytes, tuple[bytes, int]]


def login(server: RedisServer, prefix: str = "login_") -> dict[str, Any]:
    """The connection options of the Redis modules, for this server."""
    options: dict[str, Any] = {f"{prefix}host": "127.0.0.1", f"{prefix}port": server.port}
    if server.tls:
        options |= {"tls": True, "ca_certs": str(server.tls.ca)}
    return options


def contents(server: RedisServer, db: int = 0) -> Contents:
    """Every key of a database: the server's own digest of its value, and when it expires in ms (-1 for never)."""
    with server.client(db) as client:
        keys = list(client.scan_iter(count=1000))
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.execute_command("DEBUG", "DIGEST-VALUE", key)
                pipeline.execute_command("PEXPIRETIME", key)
            replies = pipeline.execute()
    return {key: (replies[2 * at][0], replies[2 * at + 1]) for at, key in enumerate(keys)}


def sizes(server: RedisServer) -> dict[str, int]:
    """How many keys each database holds that has any, under the names that INFO gives them."""
    with server.client() as client:
        return {name: facts["keys"] for name, facts in client.info("keyspace").items()}


def run_id(server: RedisServer) -> str:
    """What protected_run_ids knows this process of a server by."""
    with server.client() as client:
        return str(client.info("server")["run_id"])


def differences(result: dict[str, Any]) -> tuple[int, int, int]:
    """How many keys redis_compare has found missing, extra and different, which must be what it calls equal."""
    assert "failed" not in result, result["msg"]
    numbers = (result["missing"], result["extra"], result["different"])
    assert result["equal"] == (numbers == (0, 0, 0))
    return numbers
