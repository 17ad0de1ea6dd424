# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages quote of the code is in the code, and what there is of the code is on the pages."""

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


def test_the_readme_says_the_version_that_it_is_of() -> None:
    version = re.search(r"^version: (.+)$", (TOP / "galaxy.yml").read_text(), re.MULTILINE)
    assert version
    assert f"Status: {version[1]}. " in (TOP / "README.md").read_text()


@pytest.mark.parametrize("kind", ["plugins/modules/*.py", "roles/*"])
def test_the_readme_names_every_module_and_role(kind: str) -> None:
    readme = (TOP / "README.md").read_text()
    assert not [path.stem for path in TOP.glob(kind) if f"`{path.stem}`" not in readme]


def test_the_page_of_the_playbooks_names_every_one() -> None:
    page = (TOP / "docs/variables.md").read_text()
    assert not [path.stem for path in TOP.glob("playbooks/*.yml") if f"`keyferry.redis.{path.stem}`" not in page]


def test_the_phases_of_the_readme_are_those_of_the_playbook() -> None:
    readme = (TOP / "README.md").read_text()
    playbook = (TOP / "playbooks/migrate_db.yml").read_text()
    phases = {*re.findall(r"^ +phase: (\w+)$", playbook, re.MULTILINE)}
    assert len(phases) > 10
    table = readme.partition("## The phases")[2].partition("## ")[0]
    assert {*re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)} == phases


def test_the_minimum_of_a_library_is_the_same_everywhere() -> None:
    named = re.compile(r"\b(boto3|botocore|redis|hiredis|anycrc)\b[^\n>]*>= ?([0-9.]+)")
    promised = dict(named.findall((TOP / "meta/requirements.txt").read_text()))
    pages = [*TOP.glob("plugins/modules/*.py"), *TOP.glob("plugins/doc_fragments/*.py")]
    found = {(name, least) for page in pages for name, least in named.findall(page.read_text())}
    assert found == set(promised.items())
