# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump and resp_load beside their peers, by turns on the same data: a table of medians, and a chart in docs.

python tests/benchmarks/bench_resp.py [--keys 1000000] [--runs 3] [--chart docs/benchmarks.svg]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import rdb_data
from delay import delayed

from ansible_collections.keyferry.redis.plugins.module_utils import dump, dump_file, dump_rdb, load
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer

# What the ratios are against, within one run on one machine.
BASES = {"dump": "resp_dump", "load": "resp_load"}


@dataclass
class Case:
    """One way to do a piece of work. `run` gives back nothing; times are collected from several turns."""

    work: str
    name: str
    run: Callable[[], object]
    server: RedisServer
    prepare: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)

    def turn(self) -> None:
        self.prepare()
        started, cpu = time.monotonic(), _cpu_seconds(self.server.pid)
        self.run()
        self.seconds.append(time.monotonic() - started)
        self.server_cpu.append(_cpu_seconds(self.server.pid) - cpu)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """The servers and files of one benchmark, in a directory of its own."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.dump_path = str(directory / "ours.resp")
        self.other_path = str(directory / "other.resp")
        self.peer_path = directory / "redis-dump-go.resp"
        self.rdb = rdb_data.make_dataset("mix", keys)
        (directory / "source").mkdir()
        shutil.copy(self.rdb, directory / "source" / "dump.rdb")
        self.source = RedisServer(directory / "source")
        self.target = RedisServer(directory / "target")

    def close(self) -> None:
        self.source.kill()
        self.target.kill()

    def cases(self) -> list[Case]:
        found = [
            Case("dump", "resp_dump", lambda: self.dump_server(self.source.port), self.source),
            Case("dump", "resp_dump, format=commands", self.dump_commands, self.source),
            Case("dump", "resp_dump, rdb", self.dump_rdb, self.source),
        ]
        for ms in (0, 1, 5):
            found.append(Case("dump", f"resp_dump, proxy with {ms} ms", self.far_dump(ms), self.source))
        if shutil.which("redis-dump-go"):
            found.append(Case("dump", "redis-dump-go", self.dump_by_peer, self.source))
        if shutil.which("rdb-cli"):
            found.append(Case("dump", "rdb-cli -r", self.dump_by_rdb_cli, self.source))
        loads = [("resp_load", lambda: self.load_ours(self.target.port))]
        loads += [(f"resp_load, proxy with {ms} ms", self.far_load(ms)) for ms in (0, 1, 5)]
        loads.append(("redis-cli --pipe", lambda: self.pipe(Path(self.dump_path))))
        if shutil.which("redis-dump-go"):
            loads.append(("redis-cli --pipe of redis-dump-go's dump", lambda: self.pipe(self.peer_path)))
        found += [Case("load", name, run, self.target, self.flush) for name, run in loads]
        return found

    def dump_server(self, port: int) -> None:
        source = dump.Source(_server(port), rdb_data.DB)
        self._dump(self.dump_path, lambda writer: dump.dump(source, writer, _silent))

    def dump_commands(self) -> None:
        source = dump.Source(_server(self.source.port), rdb_data.DB, form=dump.COMMANDS)
        self._dump(self.other_path, lambda writer: dump.dump(source, writer, _silent))

    def dump_rdb(self) -> None:
        with dump_rdb.RdbSource(str(self.rdb), rdb_data.DB, dump.RESTORE) as source:
            self._dump(self.other_path, lambda writer: source.dump(writer, _silent))

    def _dump(self, dest: str, read: Callable[[dump_file.DumpWriter], dict[str, object]]) -> None:
        with dump_file.DumpWriter(dest, 0, {"format": "restore"}) as writer:
            writer.commit(read(writer))

    def far_dump(self, ms: int) -> Callable[[], None]:
        def run() -> None:
            with delayed(self.source.port, ms / 1000) as port:
                self.dump_server(port)

        return run

    def far_load(self, ms: int) -> Callable[[], None]:
        def run() -> None:
            with delayed(self.target.port, ms / 1000) as port:
                self.load_ours(port)

        return run

    def load_ours(self, port: int) -> None:
        target = load.Target(_server(port))
        found = dump_file.open_dump(self.dump_path)
        load.check_target(target, found)
        load.load(target, found, _silent)

    def flush(self) -> None:
        with self.target.client(socket_timeout=60) as client:
            client.flushall()

    def pipe(self, path: Path) -> None:
        with open(path, "rb") as commands:
            arguments = ["redis-cli", "-p", str(self.target.port), "--pipe"]
            subprocess.run(arguments, stdin=commands, stdout=subprocess.DEVNULL, check=True)

    def dump_by_peer(self) -> None:
        arguments = ["redis-dump-go", "-host", "127.0.0.1", "-port", str(self.source.port), "-db", str(rdb_data.DB)]
        with open(self.peer_path, "wb") as out:
            tuning = ["-n", "256", "-batchSize", "1000"]
            subprocess.run([*arguments, *tuning], stdout=out, stderr=subprocess.DEVNULL, check=True)

    def dump_by_rdb_cli(self) -> None:
        out = self.peer_path.with_name("rdb-cli.resp")
        subprocess.run(["rdb-cli", self.rdb, "-d", str(rdb_data.DB), "resp", "-r", "-o", out], check=True)


def _server(port: int) -> Server:
    return Server(Address("127.0.0.1", port))


def _silent(_keys: int, _bytes: int) -> None:
    """The benchmark shows no progress."""


def table(cases: list[Case]) -> str:
    lines = [f"{'work':6}{'tool':44}{'seconds':>9}{'server CPU':>12}{'ratio':>8}"]
    for case in cases:
        base = next(other for other in cases if other.name == BASES[case.work])
        seconds = statistics.median(case.seconds)
        ratio = seconds / statistics.median(base.seconds)
        cpu = statistics.median(case.server_cpu)
        lines.append(f"{case.work:6}{case.name:44}{seconds:9.2f}{cpu:12.2f}{ratio:8.2f}")
    for peer in ("redis-dump-go", "rdb-cli", "redis-cli"):
        if not shutil.which(peer):
            lines.append(f"missing on this machine, and so not measured: {peer}")
    return "\n".join(lines)


def chart(cases: list[Case], title: str) -> str:
    """Bars of the medians, as SVG."""
    longest = max(statistics.median(case.seconds) for case in cases)
    rows = []
    for index, case in enumerate(cases):
        y, seconds = 40 + index * 26, statistics.median(case.seconds)
        color = "#2f6db3" if case.name.startswith("resp_") else "#9a9a9a"
        rows.append(f'<text x="290" y="{y + 14}" text-anchor="end">{escape(case.work)}: {escape(case.name)}</text>')
        rows.append(f'<rect x="300" y="{y}" width="{seconds / longest * 340:.0f}" height="18" fill="{color}"/>')
        rows.append(f'<text x="{306 + seconds / longest * 340:.0f}" y="{y + 14}">{seconds:.2f} s</text>')
    height = 50 + 26 * len(cases)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-family="sans-serif"'
    head += ' font-size="12">'
    return "\n".join([head, f'<text x="10" y="22" font-size="15">{escape(title)}</text>', *rows, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        bench = Bench(Path(directory), options.keys)
        try:
            cases = bench.cases()
            for _run in range(options.runs):
                for case in cases:
                    case.turn()
        finally:
            bench.close()
    print(table(cases))
    if options.chart:
        title = f"{options.keys:,} keys, median of {options.runs} runs by turns on one machine"
        options.chart.write_text(chart(cases, title))


if __name__ == "__main__":
    main()
