# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a thread of its own, once some of it has failed."""

from __future__ import annotations

import os
import threading

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils.background import Background


def test_takes_nothing_more_once_something_has_failed() -> None:
    failed = threading.Event()
    later = Background(failed=lambda _error: failed.set())
    reader, writer = os.pipe()
    os.close(reader)
    done: list[int] = []
    later.do(lambda: done.append(1))
    later.do(lambda: done.append(os.write(writer, b"to nobody")))
    assert failed.wait(10)
    # A process whose reader was killed learns here that it works for nobody.
    with pytest.raises(BrokenPipeError):
        later.do(lambda: done.append(2))
    with pytest.raises(BrokenPipeError):
        later.finish()
    os.close(writer)
    assert done == [1]
