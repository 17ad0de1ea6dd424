# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a module of two Redis connections reaches the second one; the first is keyferry.redis.connection."""

    DOCUMENTATION = r"""
options:
  target_login_host:
    description: Host of the target, the server that O(login_host) is compared with.
    type: str
    default: localhost
  target_login_port:
    description: Port of the target.
    type: int
    default: 6379
  target_login_user:
    description: ACL user of the target, as O(login_user).
    type: str
  target_login_password:
    description: Password of O(target_login_user), or the target's AUTH token.
    type: str
  target_tls:
    description: Whether to connect to the target by TLS.
    type: bool
    default: false
  target_validate_certs:
    description: Whether the target's certificate and host name must be valid, as O(validate_certs).
    type: bool
    default: true
  target_ca_certs:
    description: File with the CA certificates to trust for the target, instead of the system's.
    type: path
  target_client_cert_file:
    description: File with the client's certificate, where the target asks for one.
    type: path
  target_client_key_file:
    description: File with the key of O(target_client_cert_file).
    type: path
"""
