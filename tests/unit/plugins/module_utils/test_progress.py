# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of progress tells how far a module is, seldom enough, and never breaks the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils import progress as module
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import progress_to, silent


def test_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    path = tmp_path / "progress"
    with progress_to(str(path), lambda: 200) as progress:
        assert json.loads(path.read_text())["state"] == "running"
        progress(50, 1000)
        facts = json.loads(path.read_text())
        assert (facts["state"], facts["done"], facts["total"], facts["bytes"]) == ("running", 50, 200, 1000)
        assert facts["per_second"] > 0 and facts["seconds_left"] is not None
        # What a slower thread tells later is older.
        progress(40, 900)
        progress(200, 4000)
    facts = json.loads(path.read_text())
    assert (facts["state"], facts["done"], facts["bytes"], facts["seconds_left"]) == ("done", 200, 4000, 0)
    assert list(tmp_path.iterdir()) == [path]


def test_writes_seldom(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    with progress_to(str(path), lambda: None) as progress:
        for done in range(1000):
            progress(done, done)
        assert json.loads(path.read_text())["done"] == 0
    facts = json.loads(path.read_text())
    assert (facts["done"], facts["total"], facts["seconds_left"]) == (999, None, None)


def test_tells_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    with pytest.raises(ValueError, match="the cause"), progress_to(str(path), lambda: 5) as progress:
        progress(3, 0)
        raise ValueError("the cause")
    assert json.loads(path.read_text())["state"] == "failed"


def test_nobody_need_look() -> None:
    with progress_to(None, lambda: pytest.fail("the total was asked")) as progress:
        assert progress is silent


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="progress_file"), progress_to(str(tmp_path / "a" / "b"), lambda: 0):
        pass


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "progress.part").mkdir()
    with progress_to(str(tmp_path / "progress"), lambda: 0) as progress:
        progress(1, 1)
