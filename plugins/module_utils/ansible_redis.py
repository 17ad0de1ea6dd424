# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every Redis module shares with Ansible: the connection options, and what refuses a server or an option."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Protected, Server

# Described in the doc fragment keyferry.redis.connection.
_CONNECTION_OPTIONS: dict[str, dict[str, t.Any]] = {
    "host": {"type": "str", "default": "localhost"},
    "port": {"type": "int", "default": 6379},
    "user": {"type": "str"},
    "password": {"type": "str", "no_log": True},
}
_TLS_OPTIONS: dict[str, dict[str, t.Any]] = {
    "tls": {"type": "bool", "default": False},
    "validate_certs": {"type": "bool", "default": True},
    "ca_certs": {"type": "path"},
    "client_cert_file": {"type": "path"},
    "client_key_file": {"type": "path"},
}

# Described in the doc fragment keyferry.redis.protected.
PROTECTED_SPEC: dict[str, dict[str, t.Any]] = {
    "protected_run_ids": {"type": "list", "elements": "str", "default": []},
}


def connection_spec(prefix: str = "") -> dict[str, dict[str, t.Any]]:
    """Give back the argument spec of one connection: C(login_*) and the TLS options, each after I(prefix)."""
    login = {f"{prefix}login_{name}": spec for name, spec in _CONNECTION_OPTIONS.items()}
    return {**login, **{f"{prefix}{name}": spec for name, spec in _TLS_OPTIONS.items()}}


def server_of(params: dict[str, t.Any], prefix: str = "") -> Server:
    """Give back the server that the connection options with this I(prefix) name.

    Raises KeyferryError where a file that one of them names cannot be read.
    """
    login = {name: params[f"{prefix}login_{name}"] for name in _CONNECTION_OPTIONS}
    tls = {name: params[f"{prefix}{name}"] for name in _TLS_OPTIONS}
    for name, spec in _TLS_OPTIONS.items():
        if tls["tls"] and tls[name] and spec["type"] == "path" and not os.access(tls[name], os.R_OK):
            raise KeyferryError(f"{prefix}{name} names {tls[name]}, which is not there or cannot be read on this host")
    return Server(Address(**login, **tls, prefix=prefix))


def require_positive(params: dict[str, t.Any], *names: str) -> None:
    """Raise KeyferryError when one of these options is given and is not at least 1."""
    for name in names:
        if params[name] is not None and params[name] < 1:
            raise KeyferryError(f"{name} is {params[name]}; it must be at least 1")


def refuse_protected(server: Server, params: dict[str, t.Any]) -> str:
    """Give back the run_id of the process that may be written to.

    Raises Protected when it is one that C(protected_run_ids) names.
    """
    run_id = server.run_id()
    if run_id in params["protected_run_ids"]:
        raise Protected(
            f"Redis at {server} is a server that protected_run_ids forbids to write to (the source?); nothing was"
            f" written to it. Check {server.address.prefix}login_host and {server.address.prefix}login_port"
        )
    return run_id
