# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The guard of every module that can destroy data."""

    DOCUMENTATION = r"""
options:
  protected_run_ids:
    description:
      - The C(run_id) of every server that must not be written to, such as the source of a migration and its replicas.
      - The module asks the server that it has reached for its own, and refuses before anything is written when it is
        one of these. M(keyferry.redis.redis_keyspace_info) returns it.
    type: list
    elements: str
    default: []
"""
