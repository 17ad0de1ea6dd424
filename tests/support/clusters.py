# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests with a cluster share: how to start one of three primaries, and what it holds."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from support.keyspaces import Contents, contents

from lab.nodes import RedisServer, free_port, wait_for

RANGES = ((0, 5460), (5461, 10922), (10923, 16383))


def start_cluster(stack: contextlib.ExitStack, folder: Path, engine: str, *options: str) -> list[RedisServer]:
    """Three primaries that share the slots as RANGES says, and end with the stack."""
    buses = [free_port() for _node in RANGES]
    found = [
        stack.enter_context(
            RedisServer(folder / str(bus), engine, "--cluster-enabled", "yes", "--cluster-port", str(bus), *options)
        )
        for bus in buses
    ]
    for epoch, (node, (first, last)) in enumerate(zip(found, RANGES, strict=True), start=1):
        with node.client() as client:
            # Nodes with one and the same epoch would settle it later, and a slot that moves meanwhile be taken back.
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
    with found[0].client() as client:
        for node, bus in zip(found[1:], buses[1:], strict=True):
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
    for node in found:
        with node.client() as client:
            wait_for(lambda client=client: _is_whole(client), "the cluster", interval=0.05)
    return found


def _is_whole(client: Any) -> bool:
    return client.cluster("INFO")["cluster_state"] == "ok" and len(client.execute_command("CLUSTER SLOTS")) == 3


def of_all(cluster: list[RedisServer]) -> Contents:
    return {key: value for node in cluster for key, value in contents(node).items()}
