# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump and resp_load beside their peers, by turns on the same data: a table of medians, and a page for docs.

python tests/benchmarks/bench_resp.py [--keys 1000000] [--runs 3] [--page docs/benchmarks.md]

The page also has what bench_extract.py, bench_compare.py and, with --scale, bench_scale.py print, and a chart beside it
in img/.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import rdb_data
from chart import Bar, chart
from delay import delayed

from ansible_collections.keyferry.redis.plugins.module_utils import (
    dump,
    dump_file,
    dump_forms,
    dump_rdb,
    dump_worker,
    load,
    load_target,
    replication,
)
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer

# What the ratios are against, within one run on one machine.
BASES = {"dump": "resp_dump", "load": "resp_load"}


@dataclass
class Case:
    """One way to do a piece of work. `run` gives back nothing; times are collected from several turns.

    `keys` are those that a load brought, in the largest database of its server.
    """

    work: str
    name: str
    run: Callable[[], object]
    server: RedisServer
    prepare: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    keys: int | None = None

    def turn(self) -> None:
        self.prepare()
        started, cpu = time.monotonic(), _cpu_seconds(self.server.pid)
        self.run()
        self.seconds.append(time.monotonic() - started)
        self.server_cpu.append(_cpu_seconds(self.server.pid) - cpu)
        if self.work == "load":
            with self.server.client() as client:
                self.keys = max(db["keys"] for db in client.info("keyspace").values())


def _cpu_seconds(pid: int) -> float:
    """What a process has used, nothing where it has ended."""
    if not Path(f"/proc/{pid}").exists():
        return 0.0
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
        (directory / "starting").mkdir()
        shutil.copy(self.rdb, directory / "starting" / "dump.rdb")
        self.starting = RedisServer(directory / "starting")

    def close(self) -> None:
        for server in (self.source, self.target, self.starting):
            server.kill()

    def cases(self) -> list[Case]:
        found = [
            Case("dump", "resp_dump", lambda: self.dump_server(self.source.port), self.source),
            Case("dump", "resp_dump, format=commands", self.dump_commands, self.source),
            Case("dump", "resp_dump, source=replication", self.dump_replication, self.source),
            Case("dump", "resp_dump, rdb", self.dump_rdb, self.source),
        ]
        for ms in (0, 1, 5):
            found.append(Case("dump", f"resp_dump, proxy with {ms} ms", self.far_dump(ms), self.source))
        if shutil.which("redis-cli"):
            found.append(Case("dump", "redis-cli --rdb (all databases)", self.dump_by_replication, self.source))
        if shutil.which("redis-dump-go"):
            found.append(Case("dump", "redis-dump-go", self.dump_by_peer, self.source))
        if shutil.which("rdb-cli"):
            found.append(Case("dump", "rdb-cli -r", self.dump_by_rdb_cli, self.source))
        loads = [("resp_load", lambda: load_file(self.target.port, self.dump_path))]
        loads += [(f"resp_load, proxy with {ms} ms", self.far_load(ms)) for ms in (0, 1, 5)]
        if shutil.which("redis-cli"):
            loads.append((PIPE, lambda: self.pipe(Path(self.dump_path))))
        if shutil.which("redis-cli") and shutil.which("redis-dump-go"):
            loads.append(("redis-cli --pipe of redis-dump-go's dump", lambda: self.pipe(self.peer_path)))
        found += [Case("load", name, run, self.target, self.empty) for name, run in loads]
        # What any load could at best come near to.
        found.append(Case("load", START, self.starting.start, self.starting, self.starting.kill))
        return found

    def dump_server(self, port: int) -> None:
        dump_live(port, self.dump_path)

    def dump_commands(self) -> None:
        dump_live(self.source.port, self.other_path, dump_forms.COMMANDS)

    def dump_rdb(self) -> None:
        dump_of_rdb(self.rdb, self.other_path)

    def dump_replication(self) -> None:
        with replication.replicated(_server(self.source.port), self.other_path, _silent) as path:
            dump_of_rdb(Path(path), self.other_path)

    def far_dump(self, ms: int) -> Callable[[], None]:
        def run() -> None:
            with delayed(self.source.port, ms / 1000) as port:
                self.dump_server(port)

        return run

    def far_load(self, ms: int) -> Callable[[], None]:
        def run() -> None:
            with delayed(self.target.port, ms / 1000) as port:
                load_file(port, self.dump_path)

        return run

    def empty(self) -> None:
        """Start a new process: the memory that a flush has freed would be of use to one load and not to another."""
        self.target.kill()
        self.target.start()

    def pipe(self, path: Path) -> None:
        with open(path, "rb") as commands:
            arguments = ["redis-cli", "-p", str(self.target.port), "--pipe"]
            subprocess.run(arguments, stdin=commands, stdout=subprocess.DEVNULL, check=True)

    def dump_by_peer(self) -> None:
        arguments = ["redis-dump-go", "-host", "127.0.0.1", "-port", str(self.source.port), "-db", str(rdb_data.DB)]
        with open(self.peer_path, "wb") as out:
            tuning = ["-n", "256", "-batchSize", "1000"]
            subprocess.run([*arguments, *tuning], stdout=out, stderr=subprocess.DEVNULL, check=True)

    def dump_by_replication(self) -> None:
        out = self.peer_path.with_name("redis-cli.rdb")
        arguments = ["redis-cli", "-p", str(self.source.port), "--rdb", str(out)]
        subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)

    def dump_by_rdb_cli(self) -> None:
        out = self.peer_path.with_name("rdb-cli.resp")
        subprocess.run(["rdb-cli", self.rdb, "-d", str(rdb_data.DB), "resp", "-r", "-o", out], check=True)


def dump_live(port: int, dest: str, form: dump_forms.Form = dump_forms.RESTORE) -> None:
    """Dump database DB of a server of this machine."""
    source = dump_worker.Source(_server(port), rdb_data.DB, form=form)
    _dump(dest, lambda writer: dump.dump(source, writer, _silent))


def dump_of_rdb(rdb: Path, dest: str) -> None:
    """Dump database DB of a file."""
    with dump_rdb.RdbSource(str(rdb), rdb_data.DB, dump_forms.RESTORE) as source:
        _dump(dest, lambda writer: source.dump(writer, _silent))


def _dump(dest: str, read: Callable[[dump_file.DumpWriter], dict[str, object]]) -> None:
    with dump_file.DumpWriter(dest, 0, {"format": "restore"}) as writer:
        writer.commit(read(writer))


def load_file(port: int, path: str) -> None:
    """Load a dump into a server of this machine."""
    target = load_target.Target(_server(port))
    found = dump_file.open_dump(path)
    load.load(target, found, load_target.check_target(target, found), _silent)


def _server(port: int) -> Server:
    return Server(Address("127.0.0.1", port))


def _silent(_keys: int, _bytes: int) -> None:
    """The benchmark shows no progress."""


PEERS = ("redis-cli", "redis-dump-go", "rdb-cli")
PIPE = "redis-cli --pipe"
SCALE = "Seconds per million keys, by the number of keys (short strings, one turn each)"
START = "redis-server, start from the RDB"


class Row:
    """A case's medians, and its time beside that of the base of its work."""

    def __init__(self, case: Case, cases: list[Case]) -> None:
        base = next(other for other in cases if other.name == BASES[case.work])
        self.work, self.name = case.work, case.name
        self.seconds = statistics.median(case.seconds)
        self.server_cpu = statistics.median(case.server_cpu)
        self.ratio = self.seconds / statistics.median(base.seconds)
        self.keys = "" if case.keys is None else f"{case.keys:,}"
        self.is_ours = case.name.startswith("resp_")


def missing() -> list[str]:
    """The peers that this machine does not have."""
    return [peer for peer in PEERS if not shutil.which(peer)]


def table(rows: list[Row]) -> str:
    lines = [f"{'work':6}{'tool':44}{'seconds':>9}{'server CPU':>12}{'ratio':>8}{'keys':>12}"]
    for row in rows:
        numbers = f"{row.seconds:9.2f}{row.server_cpu:12.2f}{row.ratio:8.2f}{row.keys:>12}"
        lines.append(f"{row.work:6}{row.name:44}{numbers}")
    lines += [f"missing on this machine, and so not measured: {peer}" for peer in missing()]
    return "\n".join(lines)


def page(rows: list[Row], keys: int, made_by: str, note: str, others: dict[str, str]) -> str:
    """The page for docs, in Markdown; the note says what else is to be known of this run."""
    versions = [f"Python {platform.python_version()}", _first_line("redis-server", "--version")]
    versions += [_first_line("redis-cli", "--version")] if shutil.which("redis-cli") else []
    absent = ", ".join(f"`{peer}`" for peer in missing())
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{made_by}` on {datetime.date.today()}: {os.cpu_count()} cores"
        f" ({_processor()}), {'; '.join(versions)}. Client and servers share the machine, whose load was"
        f" {os.getloadavg()[2]:.1f} over the last 15 minutes. The ratios say more than the seconds.",
        "",
        f"The data are {keys:,} keys: 85 % strings, most of them with a TTL, hashes, sets, lists, sorted sets,"
        " streams, and a few large ones (tests/benchmarks/rdb_data.py). In these tables every number is the median of"
        " the runs, and the tools take turns within each run.",
        *(["", note] if note else []),
        *(["", f"Not on this machine, and so not measured: {absent}."] if absent else []),
        "",
        "![Seconds for a dump and a load](img/benchmarks.svg)",
        "",
        "| work | tool | seconds | server's CPU | ratio | keys that arrive |",
        "|---|---|--:|--:|--:|--:|",
        *(
            f"| {row.work} | {row.name} | {row.seconds:.2f} | {row.server_cpu:.2f} | {row.ratio:.2f} | {row.keys} |"
            for row in rows
        ),
        "",
        "`proxy with n ms` goes through a process that delivers every byte half a round trip late; the one with 0 ms"
        " shows what the proxy itself costs. `redis-cli --pipe` loads the same file as `resp_load`, without matching"
        " replies to commands; `resp_load` also reads the whole file before it sends anything. redis-dump-go reads with"
        " `-n 256 -batchSize 1000`; where a key is a stream, it leaves out what is left of a hundred keys, as the last"
        " column shows of its dump.",
    ]
    for title, text in others.items():
        lines += ["", f"## {title}", "", "```text", text.rstrip(), "```"]
    return "\n".join([*lines, ""])


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" sha=")[0].strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _other(script: str, *arguments: str) -> str:
    """What another benchmark prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(keys: int, runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        bench = Bench(Path(directory), keys)
        try:
            cases = bench.cases()
            for _run in range(runs):
                for case in cases:
                    case.turn()
        finally:
            bench.close()
    return [Row(case, cases) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=int, nargs="*", default=[], metavar="KEYS", help="for bench_scale.py")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--note", default="", help="a sentence for the page, for example where the peers came from")
    options = parser.parse_args()
    rows = measure(options.keys, options.runs)
    print(table(rows))
    if not options.page:
        return
    size, runs = str(options.keys), str(options.runs)
    others = {
        "rdb_extract": _other("bench_extract.py", "--mix", size, "--str", size, "--runs", runs, "--only", "files"),
        "redis_compare": _other("bench_compare.py", "--keys", size, "--runs", runs),
    }
    if options.scale:
        others[SCALE] = _other("bench_scale.py", *map(str, options.scale))
    for title, text in others.items():
        print(f"\n{title}\n{text}")
    made_by = f"make bench KEYS={size} RUNS={runs}"
    if options.scale:
        made_by += f' SCALE="{" ".join(map(str, options.scale))}"'
    options.page.write_text(page(rows, options.keys, made_by, options.note, others))
    picture = options.page.parent / "img" / "benchmarks.svg"
    picture.parent.mkdir(exist_ok=True)
    titles = {"dump": "Dump", "load": "Load"}
    picture.write_text(
        chart(
            (title, [Bar(row.name, row.seconds, row.is_ours) for row in rows if row.work == work])
            for work, title in titles.items()
        )
    )


if __name__ == "__main__":
    main()
