# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of resp_load share: a small dump, and a dump in many blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dumps import must_dump

from ansible_collections.keyferry.redis.plugins.module_utils import dump_file
from lab.nodes import RedisServer
from lab.sample_data import fill


@pytest.fixture
def sample(redis_server: RedisServer, tmp_path: Path) -> Path:
    """A dump of 40 keys with an index of several blocks; its server keeps them in database 1."""
    fill(("127.0.0.1", redis_server.port), 40, 1)
    must_dump(redis_server, tmp_path / "sample")
    return tmp_path / "sample"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 KiB, so that a dump of a few keys has many."""
    monkeypatch.setattr(dump_file, "BLOCK_BYTES", 4096)
