# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bars as SVG that can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

_STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.value { fill: #59636e; }
.ours { fill: #2f6db3; }
.peer { fill: #a8b0b9; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .value { fill: #9198a1; }
  .ours { fill: #58a6ff; }
  .peer { fill: #6e7681; }
}
"""
_WIDTH, _LABELS, _BARS, _ROW, _HEAD = 760, 300, 370, 26, 34


class Bar(NamedTuple):
    """One bar: its name, its length in seconds, and whether it is this collection's."""

    name: str
    seconds: float
    is_ours: bool


def chart(panels: Iterable[tuple[str, list[Bar]]]) -> str:
    """Panels of bars below each other, all on one scale."""
    panels = list(panels)
    longest = max(each.seconds for _title, bars in panels for each in bars)
    rows: list[str] = []
    y = 8
    for title, bars in panels:
        rows.append(f'<text class="title" x="12" y="{y + 18}">{escape(title)}</text>')
        y += _HEAD
        for each in bars:
            length = max(each.seconds / longest * _BARS, 1)
            kind = "ours" if each.is_ours else "peer"
            rows.append(f'<text x="{_LABELS - 10}" y="{y + 14}" text-anchor="end">{escape(each.name)}</text>')
            rows.append(f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="18" rx="2"/>')
            rows.append(f'<text class="value" x="{_LABELS + length + 8:.1f}" y="{y + 14}">{each.seconds:.2f} s</text>')
            y += _ROW
        y += 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" role="img">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *rows, "</svg>", ""])
