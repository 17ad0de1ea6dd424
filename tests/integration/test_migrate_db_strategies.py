# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other strategies, each killed in the phase that is its own and gone on from, to the proven end."""

from __future__ import annotations

import itertools
import re

import pytest
from integration.cutover import TOP, Cutover

# Strategy: the tasks to be killed in, and the phases of a whole run. What all share is killed in its own test.
STORIES = {
    "rdb": (
        ["Cut database 1"],
        ["host", "preflight", "snapshot", "cut", "publish", "verify", "catch_up", "switch", "settle"],
    ),
    "swap": (
        ["Leave database 1"],
        ["host", "preflight", "snapshot", "publish", "promote", "verify", "catch_up", "switch", "settle"],
    ),
}


@pytest.mark.parametrize("strategy", STORIES)
def test_it_goes_on_from_where_it_was_killed(cutover: Cutover, strategy: str) -> None:
    tasks, phases = STORIES[strategy]
    target = f"by-{strategy}"
    run = {"src_db": 1, "strategy": strategy, "run_id": target, "target_replication_group_id": target}
    before = cutover.source_digest()
    for task in tasks:
        with cutover.start(**run) as running:
            running.reach(task)
            running.kill()
    outcome = cutover.succeed(**run)
    assert f"COMPLETE, run {target}" in outcome.output
    assert list(cutover.state(target)["phases"]) == phases
    assert [name for name in cutover.objects() if name.startswith(target)] == (
        [] if strategy == "swap" else [f"{target}-0001.rdb", f"{target}-result.rdb"]
    )
    proof = cutover.proof(target=target)
    assert proof["equal"] and proof["keys"] > 280, proof
    verified = cutover.state(target)["phases"]["verify"]
    assert verified["missing"] == verified["extra"] == verified["different"] == 0
    assert cutover.source_digest() == before
    assert not cutover.half_files()
    assert cutover.succeed(**run).recap["changed"] == 0


def test_what_was_written_since_a_swap_was_snapshot_is_told_and_not_refused(cutover: Cutover) -> None:
    run = {"src_db": 2, "strategy": "swap", "run_id": "written-since", "target_replication_group_id": "written-since"}
    cutover.succeed(*("--tags", "host,preflight,snapshot,publish,promote"), **run)
    source = cutover.source_client(2)
    source.set("written since", "the snapshot")
    cutover.succeed(**run)
    verified = cutover.state("written-since")["phases"]["verify"]
    assert (verified["missing"], verified["extra"], verified["different"]) == (1, 0, 0)
    assert verified["reference"] == "the source"


@pytest.mark.parametrize("strategy", STORIES)
def test_check_mode_says_what_it_would_do(cutover: Cutover, strategy: str) -> None:
    would = {"rdb": "cut database 3 out of", "swap": "flush every database of checked but 3"}[strategy]
    groups, snapshots = cutover.groups(), cutover.snapshots()
    run = {"src_db": 3, "strategy": strategy, "run_id": "checked", "target_replication_group_id": "checked"}
    assert would in cutover.succeed("--check", **run).words
    assert not cutover.run_dir("checked").exists()
    assert (groups, snapshots) == (cutover.groups(), cutover.snapshots())


def test_the_documented_minutes_are_those_of_the_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOP / "tests/benchmarks")
    import timelines

    page = timelines.PAGE.read_text()
    assert timelines.page(page) == page, "run tests/benchmarks/timelines.py"
    assert timelines.picture() == timelines.PICTURE.read_text(), "run tests/benchmarks/timelines.py"
    assert timelines.minutes(30_000_000)["rdb"]["switch"] == 10


def test_the_minutes_of_the_runbook_are_those_of_the_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOP / "tests/benchmarks")
    import timelines

    rows = re.findall(r"^\| `.*\d to \d.*\|$", (TOP / "docs/runbook.md").read_text(), re.MULTILINE)
    columns = zip(*(row.split("|")[2:-1] for row in rows), strict=True)
    for phases, cells in zip(timelines.minutes(30_000_000).values(), columns, strict=True):
        shown = [int(minute) for cell in cells for minute in re.findall(r"\d+", cell)]
        ends = [round(end) for end in itertools.accumulate(phases.values())]
        assert shown[0] == 0 and shown[1:-1:2] == shown[2::2], "a phase begins when the one before it has ended"
        assert {*shown[1::2]} <= {*ends} and shown[-1] == ends[-1]
