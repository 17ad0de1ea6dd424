# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether time and memory stay what they are as keys become more: seconds for each million of short strings.

Run as `python tests/benchmarks/bench_scale.py [KEYS ...]`, 1M, 10M and 30M of them unless said otherwise. 30M take two
servers' worth of 6 GB of memory one after the other, and 15 GB on the disk.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import rdb_data
from bench_extract import Measured, by_extract, in_own_process
from bench_resp import dump_live, dump_of_rdb, load_file

from lab.nodes import RedisServer

SIZES = (1_000_000, 10_000_000, 30_000_000)


def measure(keys: int, work: str, run: Callable[[], None]) -> None:
    measured = Measured()
    in_own_process(run, measured)
    seconds, cpu = measured.seconds[0] / keys * 1e6, measured.cpu[0] / keys * 1e6
    print(f"{keys / 1e6:5.1f}M keys  {work:<18}{seconds:7.2f} s{cpu:7.2f} s CPU{measured.resident[0]:6.0f} MB resident")


def scale(keys: int, rdb: Path, directory: Path) -> None:
    dump = str(directory / "dump.resp")
    measure(keys, "rdb_extract", lambda: by_extract(rdb, directory / "cut.rdb", len(os.sched_getaffinity(0))))
    (directory / "cut.rdb").unlink()
    measure(keys, "resp_dump, rdb", lambda: dump_of_rdb(rdb, dump))
    (directory / "source").mkdir()
    os.link(rdb, directory / "source" / "dump.rdb")
    with RedisServer(directory / "source") as source:
        measure(keys, "resp_dump", lambda: dump_live(source.port, dump))
    with RedisServer(directory / "target") as target:
        measure(keys, "resp_load", lambda: load_file(target.port, dump))


def main() -> None:
    for keys in map(int, sys.argv[1:] or SIZES):
        rdb = rdb_data.make_dataset("str", keys)
        with tempfile.TemporaryDirectory(dir=rdb_data.CACHE) as scratch:
            scale(keys, rdb, Path(scratch))


if __name__ == "__main__":
    main()
