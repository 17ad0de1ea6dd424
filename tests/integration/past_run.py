# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of migrate_db that is over, as its record says: what the playbooks after it find, without the run itself."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import redis
from integration.plays import Playbook, write_plays
from support.following import Follower, following
from support.modules import LabModules

from lab.nodes import RedisServer

SOURCE = "shared-redis"
RUN = f"{SOURCE}-db1"


class PastRun:
    """Its record on the migration host, and what it left.

    A server at `target_port` is the new ElastiCache; without it, database 2 of the source stands for that.
    """

    def __init__(self, aws: LabModules, directory: Path, target_port: int | None = None) -> None:
        self.aws, self.directory = aws, directory
        self.run_dir = Path(aws.info["dir"]) / "host" / "runs" / RUN
        self.run_dir.mkdir(parents=True)
        # The first node is the primary; the migration host reads the replica.
        self.ports = [node["port"] for node in aws.lab("GET", "groups")[SOURCE]["nodes"]]
        self.target_port = target_port or self.ports[0]
        self.url = directory / "url"
        self.url.write_text("redis://old:6379/1\n")

    def client(self, db: int) -> redis.Redis:
        return redis.Redis(port=self.ports[0], db=db)

    def record(self, **phases: Any) -> None:
        """Write state.json as migrate_db leaves it, with these phases changed."""
        login = {"host": "127.0.0.1", "port": self.ports[1], "tls": False}
        about = {"source": SOURCE, "src_db": 1, "dest_db": 2, "target": RUN, "strategy": "rdb"}
        held = redis.Redis(port=self.target_port, db=2).dbsize()
        done: dict[str, Any] = {
            "host": {},
            "preflight": {"login": login, "keys": self.client(1).dbsize(), "expires": 0},
            "snapshot": {"snapshot": RUN, "bucket": self.aws.info["bucket"], "key": f"{RUN}-0001.rdb", "size": 9},
            "cut": {"path": str(self.run_dir / "result.rdb")},
            "publish": {
                "endpoint": {"address": "127.0.0.1", "port": self.target_port},
                "tls": False,
                "bucket": self.aws.info["bucket"],
                "object": f"{RUN}-result.rdb",
            },
            "verify": {"keys": held, "compared": held, "expired": 0, "missing": 0, "extra": 0, "different": 0}
            | {"mode": "full", "reference": "the RDB that it was made from"},
            "switch": {"switched": True, "tasks": "file", "endpoint": f"127.0.0.1:{self.ports[0]}", "before": []},
            "settle": {"following": True, "settled": True, "lost": False, "lost_reason": "", "followed": 0}
            | {"copied": 0, "deleted": 0, "conflicts": 0, "examples": {}},
            **phases,
        }
        spans = {name: {"began": 1.0, "seconds": 1.0, **facts} for name, facts in done.items() if facts is not None}
        (self.run_dir / "state.json").write_text(json.dumps({"about": about, "plan": [*done], "phases": spans}))

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.run_dir / "state.json").read_text()))

    def followed(self, target: RedisServer, quiet: float = 3600) -> contextlib.AbstractContextManager[Follower]:
        """One that follows the source in the background, to database 2 of a target, until it is quiet so long."""
        sides = {"login_port": self.ports[0], "db": 1, "target_login_port": target.port, "target_db": 2}
        return following(self.run_dir, **sides, settle_seconds=quiet, settle_timeout=3600)

    def switch(self) -> None:
        """Switch the file `url`, by the role itself."""
        options = {
            "tasks": "file",
            "dir": str(self.run_dir),
            "replication_group_id": RUN,
            "host": "127.0.0.1",
            "port": self.ports[0],
            "db": 2,
            "file_path": str(self.url),
        }
        task = {
            "ansible.builtin.include_role": {"name": "keyferry.redis.switch_over"},
            "vars": {f"switch_over_{name}": value for name, value in options.items()},
        }
        play = {"hosts": "migration_host", "gather_facts": False, "tasks": [task]}
        Playbook(self.aws.info["dir"], write_plays(self.directory / "switch.json", play)).succeed()
