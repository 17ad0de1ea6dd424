# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role migration_host knows of each operating system that it runs on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).parents[3] / "roles/migration_host"
SYSTEMS = sorted(path for path in (ROLE / "vars").iterdir() if path.name != "main.yml")


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.stem)
def test_an_operating_system_has_all_that_the_role_uses(system: Path) -> None:
    facts = yaml.safe_load(system.read_text())

    assert set(facts) == {
        "__migration_host_default_package",
        "__migration_host_packages",
        "__migration_host_python_packages",
    }
    assert facts["__migration_host_default_package"] in facts["__migration_host_packages"]
    for package in facts["__migration_host_packages"].values():
        assert set(package) == {"binary", "cli", "service"}
        assert package["binary"].startswith("/usr/bin/") and package["binary"].endswith("-server")


def test_the_message_for_another_system_and_galaxy_name_those_that_there_are() -> None:
    refusal = re.sub(r"\s+", " ", (ROLE / "tasks/preflight.yml").read_text())
    platforms = yaml.safe_load((ROLE / "meta/main.yml").read_text())["galaxy_info"]["platforms"]

    assert [path.stem for path in SYSTEMS] == ["amazon-2023", "debian-12", "redhat-9", "ubuntu-24"]
    assert "is not one of Debian 12, Ubuntu 24.04, Amazon Linux 2023 and RHEL 9." in refusal
    assert {platform["name"] for platform in platforms} == {"Amazon", "Debian", "EL", "Ubuntu"}
