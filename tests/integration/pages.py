# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages of the documentation show: commands, YAML, JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from integration.cutover import TOP

FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE_COMMAND = re.compile(r"`((?:ansible-[a-z]+|make) [^`]+)`")
COMMENTED_COMMAND = re.compile(r"^# +(ansible-[a-z]+ .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text without the indentation, and where it stands."""

    language: str
    text: str
    place: str


def pages() -> list[Path]:
    return [TOP / "README.md", *(TOP / "docs").rglob("*.md"), *TOP.glob("roles/*/README.md")]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        indent, language, inside = found.groups()
        line = text[: found.start()].count("\n") + 1
        yield Block(language, re.sub(f"^{indent}", "", inside, flags=re.MULTILINE), f"{page.relative_to(TOP)}:{line}")


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of all pages, of these languages if any are named."""
    return [block for page in pages() for block in blocks(page) if not languages or block.language in languages]


def commands() -> dict[str, str]:
    """Every command that a reader may paste: of blocks, within sentences, and on top of playbooks; with its place."""
    found: dict[str, str] = {}
    for block in all_blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            found.setdefault(" ".join(line.split()), block.place)
    for page in pages():
        for command in INLINE_COMMAND.findall(FENCE.sub("", page.read_text())):
            found.setdefault(" ".join(command.split()), str(page.relative_to(TOP)))
    for playbook in [*TOP.glob("playbooks/*.yml"), *TOP.glob("docs/examples/*.yml")]:
        for command in COMMENTED_COMMAND.findall(playbook.read_text()):
            found.setdefault(command, str(playbook.relative_to(TOP)))
    return found
