# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each strategy takes, as the preflight reckons it: the numbers of docs/strategies.md, and their picture.

Run as `python tests/benchmarks/timelines.py` after a rate or the formula has changed (roles/preflight/vars/main.yml).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from chart import Stretch, timelines

TOP = Path(__file__).resolve().parents[2]
PAGE, PICTURE = TOP / "docs/strategies.md", TOP / "docs/img/strategies.svg"
VARS = TOP / "roles/preflight/vars/main.yml"
STRATEGIES = {"resp": "resp", "rdb": "rdb", "swap": "swap", "existing": "target=existing"}
DRAWN = 30_000_000
# Of the shared instance the database has 30 of 31 million keys, as in the procedure that this comes from.
SHARE = 30 / 31
# A short string with a TTL, by the used_memory of redis-server with the data set str of rdb_data.
BYTES_PER_KEY = 230
KINDS = {"snapshot": "peer", "publish": "peer", "verify": "proof", "catch_up": "proof", "switch": "switch"}
LEGEND = {"peer": "AWS at work", "ours": "the host at work", "proof": "proof and catching up", "switch": "switch"}


def minutes(keys: int) -> dict[str, dict[str, float]]:
    """Strategy: phase: minutes, for a database of so many keys."""
    loader = DataLoader()
    formula = loader.load_from_file(str(VARS), trusted_as_template=True)
    everything = round(keys / SHARE)
    database = {"keys": keys, "expires": keys, "estimated_bytes": keys * BYTES_PER_KEY}
    instance = {"keys": everything, "used_memory": everything * BYTES_PER_KEY, "databases": {"1": database}}
    given: dict[str, Any] = {"preflight_keyspace": instance, "preflight_src_db": 1, "preflight_rates": {}}
    seconds = Templar(loader, variables={**formula, **given}).template(formula["__preflight_seconds"])
    return {strategy: {phase: float(each) / 60 for phase, each in seconds[strategy].items()} for strategy in STRATEGIES}


def picture() -> str:
    rows = {
        STRATEGIES[strategy]: [Stretch(phase, length, KINDS.get(phase, "ours")) for phase, length in phases.items()]
        for strategy, phases in minutes(DRAWN).items()
    }
    return timelines(rows, LEGEND)


def page(text: str) -> str:
    """The page with the rows of minutes and the rates as they are now."""

    def row(match: re.Match[str]) -> str:
        totals = (f"{sum(phases.values()):.0f}" for phases in minutes(int(match[1]) * 1_000_000).values())
        return f"| minutes, {match[1]} million keys | {' | '.join(totals)} |"

    text = re.sub(r"^\| minutes, (\d+) million keys \|.*$", row, text, flags=re.MULTILINE)
    rates = re.search(r"^__preflight_measured:\n((?:  .*\n)+)", VARS.read_text(), re.MULTILINE)
    assert rates, f"{VARS} has no rates"
    return re.sub(r"(?<=\npreflight_rates:\n).*?(?=```)", lambda _match: rates[1], text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    PICTURE.write_text(picture())
