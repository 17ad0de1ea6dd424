# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every module shares with Ansible: one way in and one way out."""

from __future__ import annotations

import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError


def run(module: t.Any, work: t.Callable[[t.Any], dict[str, t.Any]]) -> None:
    """Do the module's work and leave: with its result, or with the one failure that the user is told.

    I(module) is an AnsibleModule or an AnsibleAWSModule.
    """
    try:
        result = work(module)
    except KeyferryError as error:
        module.fail_json(msg=error.msg, **error.result)
    module.exit_json(**result)
