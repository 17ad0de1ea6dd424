# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bars and timelines as SVG that can be read on a light and on a dark page."""

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
.proof { fill: #3d8b57; }
.switch { fill: #b8731e; }
.within { font-size: 11px; fill: #ffffff; }
.peer + .within { fill: #1f2328; }
.axis { stroke: #a8b0b9; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .value { fill: #9198a1; }
  .ours { fill: #58a6ff; }
  .peer { fill: #6e7681; }
  .peer + .within { fill: #ffffff; }
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
    return _document(rows, y)


class Stretch(NamedTuple):
    """A part of a timeline: its name, its length in minutes, and the class that it is drawn as."""

    name: str
    minutes: float
    kind: str


def timelines(rows: dict[str, list[Stretch]], legend: dict[str, str]) -> str:
    """Timelines below each other, on one scale that begins at minute 0; the legend names each class."""
    left, width, height, top = 120, 560, 40, 12
    longest = max(sum(each.minutes for each in stretches) for stretches in rows.values())
    bottom = top + height * len(rows)

    def at(minute: float) -> float:
        return left + minute / longest * width

    drawn = [f'<text class="value" x="{left - 10}" y="{bottom + 16}" text-anchor="end">minutes</text>']
    for minute in range(0, int(longest) + 1, 10):
        x = f"{at(minute):.1f}"
        drawn.append(f'<line class="axis" x1="{x}" y1="{top / 2}" x2="{x}" y2="{bottom}"/>')
        drawn.append(f'<text class="value" x="{x}" y="{bottom + 16}" text-anchor="middle">{minute}</text>')
    for y, (name, stretches) in zip(range(top, bottom, height), rows.items(), strict=True):
        drawn.append(f'<text x="{left - 10}" y="{y + 19}" text-anchor="end">{escape(name)}</text>')
        passed = 0.0
        for each in stretches:
            drawn += _stretch(each, at(passed), at(passed + each.minutes), y)
            passed += each.minutes
        drawn.append(f'<text class="value" x="{at(passed) + 6:.1f}" y="{y + 19}">{passed:.0f}</text>')
    x, y = left, bottom + 32
    for kind, meaning in legend.items():
        drawn.append(f'<rect class="{kind}" x="{x}" y="{y}" width="14" height="14"/>')
        drawn.append(f'<text x="{x + 20}" y="{y + 12}">{escape(meaning)}</text>')
        x += 40 + 7 * len(meaning)
    return _document(drawn, y + 24)


def _stretch(stretch: Stretch, start: float, end: float, y: int) -> list[str]:
    """A box, with the name in it where it has room."""
    box = f'<rect class="{stretch.kind}" x="{start:.1f}" y="{y}" width="{max(end - start - 1, 1):.1f}" height="28"/>'
    if end - start < 7 * len(stretch.name):
        return [box]
    place = f'x="{(start + end) / 2:.1f}" y="{y + 18}" text-anchor="middle"'
    return [box, f'<text class="within" {place}>{escape(stretch.name)}</text>']


def _document(rows: list[str], height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        ' role="img">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *rows, "</svg>", ""])
