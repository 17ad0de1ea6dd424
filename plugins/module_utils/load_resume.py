# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an earlier load got through, so that the next one leaves it out: a file beside the dump."""

from __future__ import annotations

import contextlib
import json
import os

from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Block, Dump
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import write_json


def earlier_load(dump: Dump, run_id: str, db: int | None) -> tuple[list[Block], dict[str, int]]:
    """Give back the blocks to send: all, less those that an earlier load into the same server process got through.

    And how many keys each server had evicted before that.
    """
    try:
        with open(_path(dump), encoding="ascii") as file:
            facts = json.load(file)
        undone, evicted = set(facts["undone"]), {str(server): int(keys) for server, keys in facts["evicted"].items()}
        about = facts["run_id"], facts["db"], facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # It is not there, or none of ours.
        return dump.blocks, {}
    if about != (run_id, db, dump.summary.get("sha256")):
        return dump.blocks, {}
    return [block for block in dump.blocks if block.offset in undone], evicted


def keep_progress(dump: Dump, run_id: str, db: int | None, undone: list[int], evicted: dict[str, int]) -> None:
    """Write down which blocks are not loaded yet; where that is not possible, the next load sends all of them."""
    about = {"run_id": run_id, "db": db, "sha256": dump.summary["sha256"]}
    facts = {**about, "undone": sorted(undone), "evicted": evicted}
    with contextlib.suppress(OSError):
        write_json(_path(dump), facts)


def forget_progress(dump: Dump) -> None:
    """Remove what was written down: all is loaded."""
    with contextlib.suppress(OSError):
        os.unlink(_path(dump))


def _path(dump: Dump) -> str:
    return f"{dump.path}.resume"
