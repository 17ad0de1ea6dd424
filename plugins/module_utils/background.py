# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work that goes on in a thread of its own while the rest does."""

from __future__ import annotations

import queue
import threading
import typing as t


class Background:
    """One thread that does things in turn; when one has failed, it tells I(failed), and does no more.

    I(most) may wait for their turn. What one of them raised, every later call raises.
    """

    def __init__(self, most: int = 8, failed: t.Callable[[BaseException], None] | None = None) -> None:
        self._failed = failed
        self._jobs: queue.Queue[t.Callable[[], None] | None] = queue.Queue(most)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def _run(self) -> None:
        while job := self._jobs.get():
            try:
                if not self._error:
                    job()
            except BaseException as error:
                self._error = error
                if self._failed:
                    self._failed(error)

    def do(self, job: t.Callable[[], None]) -> None:
        if self._error:
            raise self._error
        if not self._thread:
            # Not before there is work: processes are forked until then, and threads do not go through a fork.
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait for all that was given so far."""
        if self._thread:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        if self._error:
            raise self._error
