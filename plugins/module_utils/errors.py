# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one error that the user is told, and how a key stands in its text."""

from __future__ import annotations

import typing as t


class KeyferryError(Exception):
    """What every part of this collection raises when the user must be told.

    The text says what is wrong, where (the option, file, key or byte offset) and what to do next.
    It never holds a secret. C(result) is returned beside it, for facts that a playbook may act upon.
    """

    def __init__(self, msg: str, **result: t.Any) -> None:
        super().__init__(msg)
        self.msg = msg
        self.result = result


def shown(key: bytes) -> str:
    """Give back a key as text for a message, with every odd byte escaped and a long one cut."""
    text = repr(bytes(key[:120]))[1:]
    return text if len(key) <= 120 else f"{text}... ({len(key)} bytes)"
