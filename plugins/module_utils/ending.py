# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that a signal ends where nothing half-written is left.

The signal is only noted, and what works or waits looks whether there was one: an error that is raised wherever the
signal arrives may leave a lock taken or a forked process unknown, and botocore takes it for a connection that broke,
and sends again.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

# After so many seconds at most, what waits looks again.
LOOK_S = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_arrived: list[int] = []


@contextlib.contextmanager
def ended_by_signals() -> t.Iterator[None]:
    """Have raise_if_ended() tell of what would end this process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def note(number: int, _frame: t.Any) -> None:
        if os.getpid() != process:
            # One that was forked from it has nothing to leave.
            os._exit(128 + number)
        _arrived.append(number)

    # Under nohup, the end of a terminal ends nothing.
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _arrived.clear()


def raise_if_ended() -> None:
    """Raise KeyferryError where a signal that ends this process has arrived."""
    if _arrived:
        raise KeyferryError(f"Ended by {signal.Signals(_arrived[0]).name}: no further file was written. Run it again")


def end_forked(process: multiprocessing.process.BaseProcess) -> None:
    """End one that has nothing to leave, and wait for it.

    By SIGKILL: of other signals, Python forgets those that reach the process before it has got through its fork.
    """
    process.kill()
    process.join()
