# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that are ordered over HTTP, and the journal of calls.

A fault is an object; POST /_lab/faults takes a list of them:

- `op`: which calls it meets: an ElastiCache operation (CreateSnapshot), or `SERVICE:METHOD /path` for the others
  (`s3:GET /keyferry-exports/*`); shell patterns. `match`: parameters that the call must have, such as
  `{"SnapshotName": "x"}`. `times`: how many calls it meets (1; 0 for all).
- `code` and `status`: answer this error (status 400) instead of doing anything. `reset`: break the connection instead.
- `after`: do it, then answer 500, as if the answer was lost. `late`: do it, then answer S seconds later.
- `fail`: what the call started ends as failed or create-failed. `stuck`: it never ends.
- `delay`: its states take S seconds, instead of what the lab was started with.
- `missing`: the export says that it is done, and has put no object; `truncate`: it has put N bytes only. For another
  service than ElastiCache, `truncate` breaks the connection after N bytes of the answer's body.
"""

from __future__ import annotations

import fnmatch
import threading
import time
from typing import Any

FIELDS = {
    *("op", "match", "times", "code", "status", "reset", "after", "late"),
    *("fail", "stuck", "delay", "missing", "truncate"),
}


class Faults:
    """The faults still to come, and the journal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []

    def order(self, faults: list[dict[str, Any]]) -> None:
        """Add faults; ValueError for a field that there is not."""
        for fault in faults:
            if unknown := set(fault) - FIELDS or {"op"} - set(fault):
                raise ValueError(f"unknown or missing in a fault: {', '.join(sorted(unknown))}")
        with self._lock:
            self._faults += [{"times": 1, **fault} for fault in faults]

    def clear(self) -> None:
        """Forget the faults that are still to come; the journal stays."""
        with self._lock:
            self._faults = []

    def meet(self, op: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The fault that this call meets, used up by one; empty when there is none."""
        with self._lock:
            for fault in self._faults:
                wanted = fault.get("match", {})
                if not fnmatch.fnmatchcase(op, fault["op"]) or any(parameters.get(k) != v for k, v in wanted.items()):
                    continue
                fault["times"] -= 1
                if fault["times"] == 0:
                    self._faults.remove(fault)
                return fault
        return {}

    def record(self, op: str, parameters: dict[str, Any], status: int, code: str | None) -> None:
        """Write a call into the journal; no secret gets there."""
        shown = {key: "***" if key in ("AuthToken", "Passwords") else value for key, value in parameters.items()}
        self.calls.append({"time": time.time(), "op": op, "parameters": shown, "status": status, "code": code})
