# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What each attribute means, said once; a module states only its support for it."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second run changes nothing.
"""

    REDIS = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/keyferry.redis.redis) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - keyferry.redis.redis
"""

    AWS = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/keyferry.redis.aws) in C(module_defaults) to set defaults for this module
        and for every module of amazon.aws.
    support: full
    membership:
      - keyferry.redis.aws
"""
