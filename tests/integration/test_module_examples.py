# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples that ansible-doc shows work as pasted: tasks of one play, against real servers and the lab."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.cutover import TOP
from integration.plays import Playbook, write_plays
from support.modules import LabModules, aws_args

from lab import Lab
from lab.nodes import RedisServer
from lab.tls import make_tls

TOKEN = "a-token-of-sixteen-characters"
# In each database that the examples name.
KEYS = 200
# In an order in which each finds what it needs: a module, and which of its examples' tasks, all where none are named.
ORDER: list[tuple[str, slice]] = [
    ("redis_keyspace_info", slice(None)),
    ("redis_bgsave", slice(None)),
    ("resp_dump", slice(None)),
    ("resp_load", slice(None)),
    ("redis_promote_db", slice(None)),
    ("redis_compare", slice(None)),
    ("redis_follow", slice(None)),
    ("redis_flushdb", slice(None)),
    ("stored_value", slice(None)),
    ("security_group_access", slice(None)),
    ("elasticache_replication_group_info", slice(None)),
    ("elasticache_preflight_info", slice(None)),
    # Its last example deletes the snapshot that others here go on from.
    ("elasticache_snapshot", slice(0, 3)),
    ("rdb_extract", slice(None)),
    ("s3_transfer", slice(None)),
    # A group of that name is made from an RDB and deleted, then from a snapshot.
    ("elasticache_replication_group", slice(0, 2)),
    ("elasticache_replication_group", slice(4, 5)),
    ("elasticache_replication_group", slice(2, 4)),
    ("elasticache_snapshot", slice(3, 4)),
]


def modules() -> list[str]:
    return sorted(path.stem for path in (TOP / "plugins/modules").glob("*.py"))


def examples(module: str) -> str:
    """EXAMPLES of a module, without running it."""
    tree = ast.parse((TOP / f"plugins/modules/{module}.py").read_text())
    found = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    return str(ast.literal_eval(found["EXAMPLES"]))


class World:
    """What the examples name, for real: servers, files on a migration host, and an account of AWS."""

    def __init__(self, lab: Lab, here: Path) -> None:
        self.here, self.aws = here, LabModules(lab)
        tls = make_tls(here / "tls")
        token = [f"requirepass {TOKEN}"]
        replicator = [f"user replicator on >{TOKEN} ~* +@all"]
        self.ca_certs = str(tls.ca)
        self.plain = RedisServer(here / "redis.example.com", "redis", config=replicator)
        self.shared = RedisServer(here / "shared", "redis", tls=tls, config=token)
        self.sessions = RedisServer(here / "sessions", "redis", tls=tls, config=token)
        self.new = RedisServer(here / "new-redis.example.com", "redis")
        self.host = RedisServer(here / "host", "redis")
        self.servers = [self.plain, self.shared, self.sessions, self.new, self.host]
        for server in (self.plain, self.shared, self.sessions, self.host):
            login = {"password": TOKEN} if server.tls else {}
            for db in (1, 2, 3):
                with server.client(db, **login) as client:
                    client.mset({f"session:{db}:{number}": number for number in range(KEYS)})
        with self.plain.client() as client:
            client.save()
        for name in ("shared-redis-0001.rdb", "shared-0001.rdb"):
            (here / name).write_bytes(self.plain.rdb.read_bytes())
        ec2 = self.aws.client("ec2")
        subnets = [each["SubnetId"] for each in ec2.describe_subnets()["Subnets"][:1]]
        self.security_groups = {
            group: str(ec2.create_security_group(GroupName=name, Description="of the examples")["GroupId"])
            for name, group in {
                "host": "sg-0123456789abcdef0",
                "shared": "sg-0aaaaaaaaaaaaaaaa",
                "new": "sg-0bbbbbbbbbbbbbbbb",
            }.items()
        }
        self.aws.client("elasticache").create_cache_subnet_group(
            CacheSubnetGroupName="private", CacheSubnetGroupDescription="of the examples", SubnetIds=subnets
        )
        self.aws.client("ssm").put_parameter(Name="/backend/redis-url", Value="redis://old:6379/1", Type="String")
        self.aws.client("secretsmanager").create_secret(Name="backend", SecretString='{"redis_host": "old"}')

    def tasks(self, module: str) -> list[dict[str, Any]]:
        """The tasks of a module's examples, with the addresses of this world for those that they name."""
        text = examples(module)
        for example, real in {
            "/var/lib/keyferry": str(self.here),
            "login_port: 6390": f"login_port: {self.host.port}",
            "keyferry-exports": self.aws.info["bucket"],
            "region: eu-central-1": f"region: {self.aws.info['region']}",
            "min_keys: 29000000": f"min_keys: {KEYS}",
            **self.security_groups,
        }.items():
            text = text.replace(example, real)
        for name, server in {
            r"\S+\.shared\.example\.euc1\.cache\.amazonaws\.com": self.shared,
            r"\S+\.sessions\.example\.euc1\.cache\.amazonaws\.com": self.sessions,
            r"new-redis\.example\.com": self.new,
            r"redis\.example\.com": self.plain,
        }.items():
            here = rf"\1\2host: 127.0.0.1\n\1\2port: {server.port}"
            text = re.sub(rf"^( +)(\w*login_)host: {name}$", here, text, flags=re.MULTILINE)
        return list(yaml.safe_load(text))

    def end(self) -> None:
        for server in self.servers:
            server.kill()


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> Iterator[World]:
    made = World(lab, tmp_path)
    yield made
    made.end()


def play(tasks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    here = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    return {**here, "tasks": tasks, **more}


def test_the_examples_of_every_module_are_run() -> None:
    assert sorted({name for name, _which in ORDER}) == modules()


def test_every_example_is_one_that_ansible_takes(tmp_path: Path) -> None:
    plays = [play(yaml.safe_load(examples(module)), name=module) for module in modules()]
    Playbook(tmp_path, write_plays(tmp_path / "examples.json", *plays)).succeed("--syntax-check")


def test_they_work_as_pasted(world: World, lab: Lab, tmp_path: Path) -> None:
    tasks = [task for module, which in ORDER for task in world.tasks(module)[which]]
    certificates = {"ca_certs": world.ca_certs}
    plays = play(
        tasks,
        vars={
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            **dict.fromkeys(("auth_token", "new_auth_token", "orders_redis_token", "replicator_password"), TOKEN),
        },
        module_defaults={
            "group/keyferry.redis.redis": certificates,
            "keyferry.redis.redis_compare": {**certificates, "target_ca_certs": world.ca_certs},
            "keyferry.redis.redis_follow": {**certificates, "target_ca_certs": world.ca_certs},
            # Several examples write one file.
            "keyferry.redis.resp_dump": {**certificates, "force": True},
            "group/keyferry.redis.aws": aws_args(lab.info),
        },
    )
    outcome = Playbook(lab.info["dir"], write_plays(tmp_path / "play.json", plays)).succeed()
    assert outcome.recap["ok"] == len(tasks), outcome.output
