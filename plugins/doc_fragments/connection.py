# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a Redis module connects; the option names are those of community.general.redis."""

    DOCUMENTATION = r"""
options:
  login_host:
    description: Host of the Redis or Valkey server.
    type: str
    default: localhost
  login_port:
    description: Port of the server.
    type: int
    default: 6379
  login_user:
    description: ACL user to log in as. Without it, O(login_password) is the server's C(requirepass) or AUTH token.
    type: str
  login_password:
    description: Password of O(login_user), or the AUTH token.
    type: str
  tls:
    description: Whether to connect by TLS. ElastiCache with in-transit encryption needs it.
    type: bool
    default: false
  validate_certs:
    description: Whether the server's certificate and host name must be valid. Only used with O(tls=true).
    type: bool
    default: true
  ca_certs:
    description: File with the CA certificates to trust, instead of the system's.
    type: path
  client_cert_file:
    description: File with the client's certificate, where the server asks for one.
    type: path
  client_key_file:
    description: File with the key of O(client_cert_file).
    type: path
requirements:
  - redis (Python library) >= 5.0.0
"""
