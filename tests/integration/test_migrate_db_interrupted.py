# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One cutover that is killed or interrupted again and again, and started again each time.

The tests are one story, in this order.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import SOURCE, Cutover, Running

from lab.nodes import wait_for

TARGET = f"{SOURCE}-db1"
RUN = {"src_db": 1}


def slow(op: str) -> dict[str, Any]:
    """A fault: what this operation starts takes long enough to be killed in its midst."""
    return {"op": op, "delay": 3}


def asked(cutover: Cutover, op: str) -> Callable[[], bool]:
    return lambda: bool(cutover.aws.calls(op))


def kill_at(
    cutover: Cutover,
    task: str,
    ready: Callable[[], Any] = lambda: True,
    end: Callable[[Running], None] = Running.kill,
    **extra: Any,
) -> list[str]:
    """End a run in this task, when the condition is true; give back the phases that it had done."""
    with cutover.start(**RUN, **extra) as running:
        running.reach(task)
        wait_for(ready, f"the midst of {task!r}")
        end(running)
    path = cutover.run_dir() / "state.json"
    return list(cutover.state()["phases"]) if path.exists() else []


def test_killed_while_the_host_is_set_up(cutover: Cutover) -> None:
    sock = cutover.host / "supervisor.sock"
    assert kill_at(cutover, "Start the supervisor", sock.exists) == []


def test_killed_while_the_source_is_looked_at(cutover: Cutover) -> None:
    assert kill_at(cutover, "Count the keys of every node") == ["host"]


def test_killed_while_the_snapshot_is_taken(cutover: Cutover) -> None:
    cutover.aws.order(slow("CreateSnapshot"))
    assert kill_at(cutover, "Take the snapshot", asked(cutover, "CreateSnapshot")) == ["host", "preflight"]
    assert cutover.objects() == []


def test_interrupted_while_the_snapshot_is_exported(cutover: Cutover) -> None:
    cutover.aws.order(slow("CopySnapshot"))
    done = kill_at(cutover, "Take the snapshot", asked(cutover, "CopySnapshot"), Running.interrupt)
    assert done == ["host", "preflight"]


def test_killed_while_the_export_is_fetched(cutover: Cutover) -> None:
    # The phase before this one reads from S3 too, but never the export itself.
    cutover.aws.order({"op": f"s3:GET /{cutover.info['bucket']}/{TARGET}-0001.rdb", "late": 3, "times": 0})
    done = kill_at(cutover, "Fetch s3://", (cutover.run_dir() / "export.rdb.part").exists)
    cutover.aws.forget_faults()
    assert done == ["host", "preflight", "snapshot"]
    assert not (cutover.run_dir() / "export.rdb").exists()


def test_killed_while_the_instance_is_down(cutover: Cutover) -> None:
    assert kill_at(cutover, "Give the instance the RDB")[-1] == "snapshot"


def test_killed_while_the_database_is_dumped(cutover: Cutover) -> None:
    assert kill_at(cutover, "Dump database 1")[-1] == "restore"


def test_interrupted_while_the_instance_is_flushed(cutover: Cutover) -> None:
    assert kill_at(cutover, "Remove every key", end=Running.interrupt)[-1] == "restore"


def test_a_dump_that_was_cut_meanwhile_is_never_loaded(cutover: Cutover) -> None:
    dump = cutover.run_dir() / "db1.resp"
    os.truncate(dump, dump.stat().st_size - 1)
    words = ("db1.resp was cut or altered", "delete it and run again", "Nothing was flushed or published")
    cutover.refuse(*words, **RUN)
    dump.unlink()
    # It is made anew, from the export: the instance may have lost the database since.
    assert kill_at(cutover, "Load the dump")[-1] == "restore"
    assert dump.exists()


def test_the_instance_may_die_in_the_middle(cutover: Cutover) -> None:
    with cutover.start(**RUN) as running:
        running.reach("Load the dump")
        os.kill(int((cutover.host / "redis.pid").read_text()), signal.SIGKILL)
        outcome = running.end()
    # Its supervisor starts it again; whether the load saw it or not, nothing of it is published.
    assert outcome.code != 0, outcome.output
    assert list(cutover.state()["phases"])[-1] == "restore"
    assert TARGET not in cutover.groups()


def test_killed_while_the_result_is_saved(cutover: Cutover) -> None:
    assert kill_at(cutover, "write its RDB")[-1] == "restore"


def test_killed_while_the_result_is_uploaded(cutover: Cutover) -> None:
    cutover.aws.order({"op": "s3:PUT /*", "late": 2})
    uploads = len(cutover.aws.calls(f"s3:PUT /{cutover.info['bucket']}/{TARGET}-result.rdb"))
    assert uploads == 0
    assert kill_at(cutover, "Upload ")[-1] == "move"


def test_interrupted_while_the_new_group_is_created(cutover: Cutover) -> None:
    cutover.aws.order(slow("CreateReplicationGroup"))
    is_asked = asked(cutover, "CreateReplicationGroup")
    assert kill_at(cutover, "Create the ElastiCache", is_asked, Running.interrupt)[-1] == "move"


def test_killed_while_both_are_compared(cutover: Cutover) -> None:
    assert kill_at(cutover, "Compare ")[-1] == "publish"


def test_killed_while_the_application_is_switched(cutover: Cutover, backend: Path) -> None:
    assert kill_at(cutover, "Write the new endpoint to ", **switch_to(backend))[-1] == "catch_up"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("application") / "backend.url"


def switch_to(backend: Path) -> dict[str, str]:
    return {"cutover_tasks": "file", "cutover_file": str(backend)}


def test_it_ends_complete_and_proven(cutover: Cutover, backend: Path) -> None:
    outcome = cutover.succeed(**RUN, **switch_to(backend))
    assert f"COMPLETE, run {TARGET}" in outcome.output
    proof = cutover.proof()
    assert proof["equal"] and proof["keys"] > 280, proof
    endpoint = cutover.state()["phases"]["publish"]["endpoint"]
    assert backend.read_text() == f"redis://{endpoint['address']}:{endpoint['port']}/0\n"
    assert not cutover.half_files()
    # However often it was killed, AWS was asked for one of each.
    for op in ("CreateSnapshot", "CopySnapshot", "CreateReplicationGroup"):
        assert len(cutover.aws.calls(op)) == 1, op
    assert cutover.succeed(**RUN).recap["changed"] == 0
