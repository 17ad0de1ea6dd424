# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: an AWS on loopback, with real Redis and Valkey servers behind its ElastiCache."""

from __future__ import annotations

from .handle import Lab

__all__ = ["Lab"]
