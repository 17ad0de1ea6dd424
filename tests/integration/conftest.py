# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the integration tests share beside what all tests do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.account import Account
from integration.cutover import Cutover

from lab import Lab


@pytest.fixture(scope="module")
def aws(lab: Lab) -> Account:
    """The AWS of the module's lab."""
    return Account(lab)


@pytest.fixture(scope="module")
def cutover(lab: Lab) -> Iterator[Cutover]:
    """The playbook migrate_db on the module's lab. The migration host's instance ends with it."""
    runs = Cutover(lab)
    yield runs
    runs.end_host()
