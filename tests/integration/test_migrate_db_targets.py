# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cutover refuses to put together, and a cutover beside a source that is written to."""

from __future__ import annotations

from integration.cutover import Cutover


def test_what_cannot_go_together_is_refused(cutover: Cutover) -> None:
    cutover.refuse(
        "target=existing is filled by dump and load",
        "Which ElastiCache exists already? With target=existing, set target_replication_group_id.",
        "pause_before names lunch; the phases of this run are host, preflight, snapshot, fill, verify",
        src_db=2,
        target="existing",
        strategy="rdb",
        pause_before=["lunch"],
    )
    cutover.refuse(
        "Give src_db or a list of moves, not both.",
        "A move lacks its src_db",
        "A list of moves needs strategy=rdb",
        src_db=1,
        moves=[{"src_db": 2}, {"dest_db": 3}],
    )
    assert not cutover.host.exists()


def test_what_is_written_until_the_switch_comes_along(cutover: Cutover) -> None:
    source = cutover.source_client(2)
    run = {"src_db": 2, "strategy": "swap", "run_id": "late", "target_replication_group_id": "late"}
    source.mset({"goes": 1, "changes": 1})
    with cutover.start(pause_before="switch", **run) as running:
        running.reach("Copy what differs")
        source.set("comes", "later")
        running.reach("Wait for")
        source.set("comes", "later still")
        source.set("changes", 2, ex=86400)
        source.delete("goes")
        (cutover.run_dir("late") / "continue-switch").touch()
        outcome = running.end()
    assert outcome.code == 0, outcome.output
    rounds = cutover.state("late")["phases"]["catch_up"]["rounds"]
    assert len(rounds) == 2 and rounds[-1]["repaired"] >= 2, rounds
    proof = cutover.proof(2, "late")
    assert proof["equal"], proof
