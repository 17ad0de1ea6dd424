# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rdb_extract by one and by several processes, beside what else can make DB N's file: medians and ratios.

Run as `python tests/benchmarks/bench_extract.py [--str KEYS] [--mix KEYS] [--runs N]`. A peer that is not on this
machine is named as missing. Times of a shared machine differ by the minute, so all of them are taken by turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import rdb_data

from ansible_collections.keyferry.redis.plugins.module_utils import rdb
from ansible_collections.keyferry.redis.plugins.module_utils.extract import Source, Wanted, extract
from lab.nodes import RedisServer

REFERENCE = "redis-server: load, flush, SAVE"


class Measured:
    """Seconds, CPU seconds with those of child processes, and the peak of resident memory in MB, of each run."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.resident: list[float] = []

    def row(self, name: str, reference: float) -> str:
        seconds = statistics.median(self.seconds)
        ratio = f"{seconds / reference:6.2f}" if reference else "      "
        return (
            f"  {name:<34}{seconds:8.2f} s{statistics.median(self.cpu):8.2f} s CPU{max(self.resident):7.0f} MB{ratio}"
        )


def in_own_process(work: Callable[[], None], measured: Measured) -> None:
    """Run in a child, so that its memory and CPU are its own; children of the child add to the peak."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        work()
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        os.write(writing, b"%d %d" % tuple(peaks))
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    measured.seconds.append(time.perf_counter() - begin)
    os.close(writing)
    own, others = map(int, os.read(reading, 100).split())
    os.close(reading)
    if status:
        raise RuntimeError(f"a run ended with status {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    measured.resident.append((own + others) / 1024)


def walk_only(path: Path) -> None:
    source = Source(str(path))
    pos = source.walker.head()[1]
    while pos < source.size - rdb.CRC_BYTES:
        for item in source.walker.items(pos, min(pos + source.chunk, source.size - rdb.CRC_BYTES)):
            source.forget(pos, item.end)
            pos = item.end


def checksum_only(path: Path) -> None:
    source = Source(str(path))
    source._crc(0, source.size)


def by_extract(path: Path, dest: Path, workers: int, dry: bool = False) -> None:
    extract(str(path), [Wanted(rdb_data.DB, str(dest))], force=True, workers=workers, dry=dry)


def by_server(path: Path, directory: Path) -> None:
    """Load the file, drop the other databases, promote DB N, and save."""
    home = directory / "server"
    home.mkdir()
    shutil.copy(path, home / "dump.rdb")
    with RedisServer(home) as server, server.client(socket_timeout=3600) as client:
        client.flushdb()
        client.swapdb(0, rdb_data.DB)
        client.save()
    shutil.rmtree(home)


def by_rdb_cli(path: Path, dest: Path) -> None:
    subprocess.run(["rdb-cli", path, "-d", str(rdb_data.DB), "resp", "-r", "-o", dest], check=True)


def bench(path: Path, runs: int, most: int) -> None:
    with tempfile.TemporaryDirectory(dir=rdb_data.CACHE) as scratch:
        dest = Path(scratch) / "cut.rdb"
        works: dict[str, Callable[[], None]] = {REFERENCE: lambda: by_server(path, Path(scratch))}
        if shutil.which("rdb-cli"):
            works["rdb-cli -d 1 resp -r"] = lambda: by_rdb_cli(path, dest)
        works["walk alone, 1 process"] = lambda: walk_only(path)
        works["checksum alone"] = lambda: checksum_only(path)
        for workers in sorted({1, 2, most}):
            works[f"rdb_extract, {workers} process(es), no file"] = lambda n=workers: by_extract(
                path, dest, n, dry=True
            )
            works[f"rdb_extract, {workers} process(es)"] = lambda n=workers: by_extract(path, dest, n)
        measured = {name: Measured() for name in works}
        for _unused in range(runs):
            for name, work in works.items():
                in_own_process(work, measured[name])
    print(f"{path.name}, {path.stat().st_size / 1e6:.0f} MB, median of {runs}, ratio to {REFERENCE!r}")
    reference = statistics.median(measured[REFERENCE].seconds)
    for name, each in measured.items():
        print(each.row(name, reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--str", type=int, default=5_000_000, metavar="KEYS", help="keys of the data set str, 0 for none"
    )
    parser.add_argument(
        "--mix", type=int, default=1_000_000, metavar="KEYS", help="keys of the data set mix, 0 for none"
    )
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    missing = [name for name in ("rdb-cli", "redis-dump-go") if not shutil.which(name)]
    if missing:
        print(f"not on this machine, so not measured: {', '.join(missing)}", file=sys.stderr)
    most = len(os.sched_getaffinity(0))
    for name, keys in (("str", options.str), ("mix", options.mix)):
        if keys:
            bench(rdb_data.make_dataset(name, keys), options.runs, most)


if __name__ == "__main__":
    main()
