# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages quote of the code is in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
GAP = "…"


def quoted_texts() -> list[str]:
    """The error texts of the troubleshooting page: the first cell of each row."""
    page = (TOP / "docs/troubleshooting.md").read_text()
    return re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)


def written_texts() -> str:
    """All text of plugins, roles and playbooks, each message on one line as it is printed."""
    files = [path for room in ("plugins", "roles", "playbooks") for path in (TOP / room).rglob("*.*")]
    source = "\n".join(path.read_text() for path in files if path.suffix in (".py", ".yml"))
    # Python's strings are put together of pieces, YAML's are folded.
    return " ".join(re.sub(r'"\s*\n\s*f?"', "", source).split())


WRITTEN = written_texts()


@pytest.mark.parametrize("text", quoted_texts())
def test_the_code_says_what_the_troubleshooting_page_quotes(text: str) -> None:
    assert re.search(".{1,200}?".join(re.escape(piece) for piece in text.split(GAP)), WRITTEN)
