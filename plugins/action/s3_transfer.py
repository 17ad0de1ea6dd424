# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.keyferry.redis.plugins.plugin_utils.progress import ProgressAction


class ActionModule(ProgressAction):
    """M(keyferry.redis.s3_transfer), with its progress shown."""

    unit = "bytes"
