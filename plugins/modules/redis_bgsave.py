#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_bgsave
short_description: Have a Redis server write its RDB file, and wait for it
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Runs BGSAVE, waits until the file is written, and fails when the server could not write it.
  - A save that is under way already may be older than the data, so it is waited for and another one is made.
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Every run makes a new file.
options:
  wait:
    description: Whether to wait until the file is written.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait at most.
    type: int
    default: 3600
notes:
  - An ACL user needs C(on +@connection +info +bgsave), and for RV(path) and RV(size) also C(+config|get).
"""

EXAMPLES = r"""
- name: Save the migration host's instance
  keyferry.redis.redis_bgsave:
    login_port: 6390
  register: saved

- name: Start a save and go on
  keyferry.redis.redis_bgsave:
    login_port: 6390
    wait: false
"""

RETURN = r"""
path:
  description: The RDB file on the server's own host; V(null) where the server does not say (ACL, ElastiCache).
  returned: success
  type: str
  sample: /var/lib/keyferry/instance/dump.rdb
size:
  description:
    - Size in bytes of the file of that path on the host where the module runs; V(null) where there is none.
    - Where the server is on another host, such a file is not the server's.
  returned: success
  type: int
  sample: 2147483648
lastsave:
  description: When the last successful save ended, in Unix seconds.
  returned: success
  type: int
  sample: 1795000000
elapsed:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 21.4
"""

import contextlib
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_redis import connection_spec, server_of
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

POLL_S = 0.2


def work(module: AnsibleModule) -> dict[str, t.Any]:
    started = time.monotonic()
    params = module.params
    server = server_of(params)
    path = _path(server)
    if not module.check_mode:
        _wait(server, started + params["wait_timeout"])
        process = server.info("server")
        server.call("BGSAVE")
        if params["wait"]:
            facts = _wait(server, started + params["wait_timeout"])
            if server.run_id() != process["run_id"]:
                raise KeyferryError(f"Redis at {server} was started anew while it saved; its own log says why")
            _require_saved(server, path or "its RDB file", facts, process["server_time_usec"] // 10**6)
    return {
        "changed": True,
        "path": path,
        "size": os.stat(path).st_size if path and os.path.exists(path) else None,
        "lastsave": server.info("persistence")["rdb_last_save_time"],
        "elapsed": round(time.monotonic() - started, 3),
    }


def _wait(server: Server, deadline: float) -> dict[str, t.Any]:
    """Wait until no save is under way; give back what INFO persistence says then."""
    while True:
        facts = server.info("persistence")
        if not facts["rdb_bgsave_in_progress"]:
            return facts
        if time.monotonic() > deadline:
            raise KeyferryError(
                f"Redis at {server} is still saving (for {facts['rdb_current_bgsave_time_sec']} s) when wait_timeout"
                " is over. It goes on; run again to wait for it"
            )
        time.sleep(POLL_S)


def _require_saved(server: Server, path: str, facts: dict[str, t.Any], began: int) -> None:
    """Raise KeyferryError unless INFO persistence says that the save succeeded that was asked for at I(began).

    That is in Unix seconds of the server.
    """
    if facts["rdb_last_bgsave_status"] != "ok":
        raise KeyferryError(
            f"Redis at {server} could not write {path}; its own log says why."
            " Most often the disk is full, or fork was refused (vm.overcommit_memory must be 1)"
        )
    # A save that FLUSHALL ends leaves the status as it was.
    if facts["rdb_last_save_time"] < began:
        raise KeyferryError(f"Redis at {server} ended the save of {path} before it was done; its own log says why")


def _path(server: Server) -> str | None:
    """Give back where the server writes its RDB file, or None where it does not tell."""
    with contextlib.suppress(KeyferryError):
        settings = {name: server.call("CONFIG", "GET", name) for name in ("dir", "dbfilename")}
        return os.path.join(*(_text(reply) for reply in settings.values()))
    return None


def _text(reply: t.Any) -> str:
    """Give back the one value of a CONFIG GET reply, which redis-py hands over as a dict or as a list."""
    value = next(iter(reply.values())) if isinstance(reply, dict) else reply[1]
    return value.decode() if isinstance(value, bytes) else value


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
