# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether time and memory stay what they are as keys become more: seconds for each million of short strings.

Run as `python tests/benchmarks/bench_scale.py [KEYS ...]`, 1M, 10M and 30M of them unless said otherwise. 30M take two
servers' worth of 6 GB of memory one after the other, and 15 GB on the disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import rdb_data
from bench_extract import Measured, by_extract, in_own_process
from bench_resp import dump_live, dump_of_rdb, load_file

from lab.nodes import RedisServer

SIZES = (1_000_000, 10_000_000, 30_000_000)


def measure(keys: int, work: str, run: Callable[[], None]) -> None:
    measured = Measured()
    with peak_memory(os.getpid()) as peak:
        in_own_process(run, measured)
    seconds, cpu = measured.seconds[0] / keys * 1e6, measured.cpu[0] / keys * 1e6
    print(f"{keys / 1e6:5.1f}M keys  {work:<18}{seconds:7.2f} s{cpu:7.2f} s CPU{max(peak):6.0f} MB resident")


@contextlib.contextmanager
def peak_memory(process: int) -> Iterator[list[float]]:
    """Give back a list of the MB that are resident in `process` and those below it, all at a time, looked at often.

    A page that processes share counts once (Pss in man 5 proc_pid_smaps): getrusage counts it in each, and has no peak
    of several at a time.
    """
    found = [0.0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            # This one too: what it has forked shares its pages.
            found.append(sum(map(_proportional_mb, [process, *_below(process)])))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _below(process: int) -> list[int]:
    """Give back the processes that this one has started, but the servers, and those that these have."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if Path(f"/proc/{child}/comm").read_text().strip() != "redis-server":
                    found += [child, *_below(child)]
    return found


def _proportional_mb(process: int) -> float:
    # It may have ended meanwhile.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


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
