# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_compare on two local servers, beside redis-dump-go reading one of them, by turns on the same data.

Each turn is a process of its own; the table tells its CPU time and largest memory, and the CPU time of both servers.

python tests/benchmarks/bench_compare.py [--keys 1000000] [--runs 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import rdb_data

from ansible_collections.keyferry.redis.plugins.module_utils import compare
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.progress import silent
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer

PEER = "redis-dump-go"


@dataclass
class Case:
    """One comparison, as a command; a turn appends what it took."""

    name: str
    command: list[str]
    servers: list[RedisServer]
    seconds: list[float] = field(default_factory=list)
    own_cpu: list[float] = field(default_factory=list)
    server_cpu: list[list[float]] = field(default_factory=list)
    megabytes: float = 0

    def turn(self) -> None:
        started, before = time.monotonic(), [_cpu_seconds(server.pid) for server in self.servers]
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{self.name} ended with status {process.returncode}")
        self.seconds.append(time.monotonic() - started)
        self.own_cpu.append(usage.ru_utime + usage.ru_stime)
        self.server_cpu.append([_cpu_seconds(server.pid) - cpu for server, cpu in zip(self.servers, before)])
        self.megabytes = max(self.megabytes, usage.ru_maxrss / 1024)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cases(servers: list[RedisServer], other: RedisServer) -> list[Case]:
    source, target = servers

    def ours(name: str, to: RedisServer, *options: str) -> Case:
        ports = ["--compare", str(source.port), str(to.port)]
        return Case(name, [sys.executable, __file__, *ports, *options], [source, to])

    found = [
        ours("full, both redis", target),
        ours("full, redis and valkey", other),
        ours("sample, both redis", target, "--sample"),
    ]
    if shutil.which(PEER):
        where = ["-host", "127.0.0.1", "-port", str(source.port), "-db", str(rdb_data.DB)]
        found.append(Case(f"{PEER}, one server", [PEER, *where, "-n", "256", "-batchSize", "1000"], [source]))
    return found


def compare_once(ports: list[int], sample: bool) -> None:
    """What a turn's process does."""
    sides = [Endpoint(Server(Address("127.0.0.1", port)), rdb_data.DB) for port in ports]
    size = compare.sample_size(0.99, 0.001) if sample else None
    found = compare.compare(compare.Comparison(*sides, sample_size=size), silent)
    if not found["equal"]:
        raise SystemExit(f"the two are not equal: {found}")


def table(cases: list[Case], keys: int) -> str:
    lines = [f"{'comparison':30}{'seconds':>9}{'own CPU':>9}{'server CPU':>16}{'µs a key':>10}{'ratio':>7}{'MB':>6}"]
    base = statistics.median(cases[0].seconds)
    for case in cases:
        seconds = statistics.median(case.seconds)
        servers = " + ".join(f"{statistics.median(each):.2f}" for each in zip(*case.server_cpu))
        lines.append(
            f"{case.name:30}{seconds:9.2f}{statistics.median(case.own_cpu):9.2f}{servers:>16}"
            f"{seconds / keys * 1e6:10.2f}{seconds / base:7.2f}{case.megabytes:6.0f}"
        )
    if not shutil.which(PEER):
        lines.append(f"missing on this machine, and so not measured: {PEER}")
    return "\n".join(lines)


def _start(directory: Path, rdb: Path, engine: str) -> RedisServer:
    directory.mkdir()
    shutil.copy(rdb, directory / "dump.rdb")
    return RedisServer(directory, engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compare", type=int, nargs=2, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--sample", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        return compare_once(options.compare, options.sample)
    rdb = rdb_data.make_dataset("mix", options.keys)
    servers: list[RedisServer] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        try:
            for name, engine in (("source", "redis"), ("target", "redis"), ("other", "valkey")):
                servers.append(_start(Path(directory) / name, rdb, engine))
            found = cases(servers[:2], servers[2])
            for _run in range(options.runs):
                for case in found:
                    case.turn()
        finally:
            for server in servers:
                server.kill()
    print(table(found, options.keys))


if __name__ == "__main__":
    main()
