# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests share: real servers of both engines, and the lab. Each ends with the test that used it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.modules import LabModules

from lab import Lab
from lab.nodes import RedisServer

ENGINES = ("redis", "valkey")
# How long an example takes says nothing on a busy machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine under test; a test that uses it runs once for each."""
    if request.param == "redis" and not shutil.which("redis-server"):
        pytest.fail("redis-server is not on the PATH: run `make setup` as root, or install it")
    return str(request.param)


@pytest.fixture
def start_server(tmp_path: Path, engine: str) -> Iterator[Callable[..., RedisServer]]:
    """`start_server(*args, **options)` starts one more server of the engine under test, options as RedisServer."""
    servers: list[RedisServer] = []

    def start(*args: str, **options: object) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"server-{len(servers)}", engine, *args, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def redis_server(start_server: Callable[..., RedisServer]) -> RedisServer:
    """A fresh, empty server; the test runs once for each engine."""
    return start_server()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """An AWS on loopback with redis-servers, a small `shared-redis` (1000 keys in all) and short state changes."""
    with Lab(tmp_path_factory.mktemp("lab"), engine="redis", keys=1000, delay=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def aws(lab: Lab) -> LabModules:
    """The AWS modules on the module's lab."""
    return LabModules(lab)


@pytest.fixture(autouse=True)
def _no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test meets the faults that one before it has ordered."""
    yield
    if "aws" in request.fixturenames:
        request.getfixturevalue("aws").forget_faults()
