# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module of this collection in the tests' own process, as Ansible would: arguments in, JSON out."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any
from unittest import mock

import boto3
from ansible.module_utils import _internal
from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args
from botocore.config import Config
from botocore.loaders import JSONFileLoader

from lab import Lab

PACKAGE = "ansible_collections.keyferry.redis.plugins.modules"


def run_module(module: str, /, *, _check: bool = False, _diff: bool = False, **args: Any) -> dict[str, Any]:
    """Give back what the module returned; a failure has `failed` true. `_check` and `_diff` set these modes.

    An exception that the module does not turn into a result is the test's to see.
    """
    main = importlib.import_module(f"{PACKAGE}.{module}").main
    settings = {"_ansible_check_mode": _check, "_ansible_diff": _diff, "_ansible_remote_tmp": "/tmp"}
    output = io.StringIO()
    # ansible-core collects warnings in the process, which for a module is one run.
    fresh_warnings = mock.patch.dict(warnings._global_warnings, clear=True)
    # Another test of the process may have imported what makes it a control node, where they would go to the screen.
    no_controller = mock.patch.object(_internal, "is_controller", False)
    fresh_deprecations = mock.patch.dict(warnings._global_deprecations, clear=True)
    with (
        patch_module_args({**args, **settings}),
        contextlib.redirect_stdout(output),
        fresh_warnings,
        fresh_deprecations,
        no_controller,
    ):
        try:
            main()
        except SystemExit:
            pass
        else:
            raise AssertionError(f"{module} returned without a result")
    return dict(json.loads(output.getvalue().strip().splitlines()[-1]))


_RUN = """
import json, sys
from support.modules import run_module
print(json.dumps(run_module(sys.argv[1], **json.load(sys.stdin))))
"""


@contextlib.contextmanager
def module_process(module: str, /, **args: Any) -> Iterator[subprocess.Popen[str]]:
    """A module that runs in a process, and a process group, of its own; what it returned is its output, as JSON."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, module],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdin
            process.stdin.write(json.dumps(args))
            process.stdin.close()
            # So that communicate() does not flush what is closed.
            process.stdin = None
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def group_is_gone(process: subprocess.Popen[str]) -> bool:
    """Whether neither the process nor one that it has started is left."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def aws_args(lab_info: dict[str, Any]) -> dict[str, Any]:
    """The connection options of every AWS module, for the lab."""
    return {option: lab_info[option] for option in ("endpoint_url", "region", "access_key", "secret_key")}


_load_file = JSONFileLoader.load_file


@functools.cache
def _read_model(path: str) -> Any:
    return _load_file(JSONFileLoader(), path)


class LabModules:
    """The AWS modules, run against a lab, and what a test asks of that lab."""

    def __init__(self, lab: Lab) -> None:
        self.info = lab.info
        self._args = aws_args(self.info)

    def run(self, module: str, /, **args: Any) -> dict[str, Any]:
        """As run_module, with the lab's connection options where the test gives no others."""
        # Most of a short run is botocore reading its models again; the tests' many runs share them.
        with mock.patch.object(JSONFileLoader, "load_file", lambda _loader, path: _read_model(path)):
            return run_module(module, **{**self._args, **args})

    def client(self, service: str, region: str | None = None, **config: Any) -> Any:
        """A plain boto3 client of the lab, of its own region or another; botocore's Config on request."""
        return boto3.client(
            service,
            endpoint_url=self.info["endpoint_url"],
            region_name=region or self.info["region"],
            aws_access_key_id=self.info["access_key"],
            aws_secret_access_key=self.info["secret_key"],
            config=Config(**config),
        )

    def order(self, *faults: dict[str, Any]) -> None:
        """Order faults, as lab.faults describes them."""
        self.lab("POST", "faults", list(faults))

    def forget_faults(self) -> None:
        self.lab("DELETE", "faults")

    def calls(self, op: str) -> list[dict[str, Any]]:
        """What the lab was asked with this operation so far."""
        return [call for call in self.lab("GET", "calls") if call["op"] == op]

    def lab(self, method: str, path: str, body: Any = None) -> Any:
        """What the lab's own pages (lab.server) answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.info['endpoint_url']}/_lab/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())
