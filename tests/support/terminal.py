# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command as a person has it, on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import termios

from lab.nodes import wait_for

SILENCE_S = 60


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            os.execvpe(command[0], command, environment)
        self.seen = ""

    def read(self) -> bool:
        """Take what it prints next; false when it has ended."""
        assert select.select([self._terminal], [], [], SILENCE_S)[0], f"nothing came after: {self.seen}"
        try:
            data = os.read(self._terminal, 1 << 16)
        except OSError:
            return False
        self.seen += data.decode()
        return bool(data)

    def reach(self, words: str) -> None:
        """Wait until it has printed these words."""
        while words not in self.seen:
            assert self.read(), f"it ended before {words!r}: {self.seen}"

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def answer(self, line: bytes) -> None:
        """Type at a prompt of Ansible's, which takes the terminal for itself, throws away what was typed, and reads."""
        wait_for(self._is_read, "the prompt to read")
        for _try in range(10):
            self.press(line + b"\r")
            # Typed before the prompt has thrown away what was typed, it is gone too.
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not self._is_read(), "the prompt to take it", 3)
                return
        raise AssertionError(f"the prompt took nothing: {self.seen}")

    def _is_read(self) -> bool:
        """Whether something reads the terminal key by key."""
        return not termios.tcgetattr(self._terminal)[3] & termios.ICANON

    def end(self) -> str:
        """All that it has printed, to its end."""
        while self.read():
            pass
        os.close(self._terminal)
        os.waitpid(self.pid, 0)
        return self.seen
