# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end a process, and where they do."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils.ending import ended_by_signals, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_work_where_it_looks_and_not_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    steps = []
    with pytest.raises(KeyferryError, match=f"Ended by {number.name}: no further file"), ended_by_signals():
        os.kill(os.getpid(), number)
        steps.append("what must not be cut in two")
        raise_if_ended()
        steps.append("more")
    assert steps == ["what must not be cut in two"]
    assert signal.getsignal(number) is before
    raise_if_ended()


def test_what_was_done_when_the_signal_came_is_done() -> None:
    with ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    with ended_by_signals():
        raise_if_ended()


def test_what_nohup_ignores_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            raise_if_ended()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_ends_at_once() -> None:
    with ended_by_signals():
        forked = os.fork()
        if not forked:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 128 + signal.SIGTERM
        raise_if_ended()


def test_a_thread_leaves_signals_to_the_main_one() -> None:
    handlers = []

    def work() -> None:
        with ended_by_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
