# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module of this collection in the tests' own process, as Ansible would: arguments in, JSON out."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from typing import Any

from ansible.module_utils.testing import patch_module_args

PACKAGE = "ansible_collections.keyferry.redis.plugins.modules"


def run_module(module: str, /, *, _check: bool = False, _diff: bool = False, **args: Any) -> dict[str, Any]:
    """Give back what the module returned; a failure has `failed` true. `_check` and `_diff` set these modes.

    An exception that the module does not turn into a result is the test's to see.
    """
    main = importlib.import_module(f"{PACKAGE}.{module}").main
    settings = {"_ansible_check_mode": _check, "_ansible_diff": _diff, "_ansible_remote_tmp": "/tmp"}
    output = io.StringIO()
    with patch_module_args({**args, **settings}), contextlib.redirect_stdout(output):
        try:
            main()
        except SystemExit:
            pass
        else:
            raise AssertionError(f"{module} returned without a result")
    return dict(json.loads(output.getvalue().strip().splitlines()[-1]))


def aws_args(lab_info: dict[str, Any]) -> dict[str, Any]:
    """The connection options of every AWS module, for the lab."""
    return {option: lab_info[option] for option in ("endpoint_url", "region", "access_key", "secret_key")}
