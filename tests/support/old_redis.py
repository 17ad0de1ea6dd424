# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of before 7.0: without PEXPIRETIME, and with payloads of RDB version 9.

tests/setup.sh lays them out: Redis 6.2, and Redis 5.0, which is without PXAT too.
"""

from __future__ import annotations

import subprocess
from typing import Any

import redis

from lab import nodes


class OldRedis(nodes.RedisServer):
    """Engine redis-5, else Redis 6.2."""

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        # HELLO came with 6.0.
        return super().client(db, **{"protocol": 2, **options})

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = self._options()
        # Came with 7.0; before that DEBUG was open to all.
        at = options.index("--enable-debug-command")
        binary = nodes.server_binary("redis-5" if self.engine == "redis-5" else "redis-6.2")
        command = [binary, *options[:at], *options[at + 2 :], *self._args]
        silent = subprocess.DEVNULL
        return nodes.spawn_tied(
            command, cwd=self.directory, stdin=silent, stdout=silent, stderr=silent, start_new_session=True
        )
