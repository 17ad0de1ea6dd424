# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role's meta/argument_specs.yml says of its options is what its defaults/main.yml does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted((Path(__file__).parents[3] / "roles").iterdir())

every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def options_of(role: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every option of every entry point."""
    entries = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"].values()
    return [option for entry in entries for option in entry.get("options", {}).items()]


def with_suboptions(options: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in options:
        yield name, option
        yield from with_suboptions([(f"{name}.{part}", each) for part, each in option.get("options", {}).items()])


@every_role
def test_the_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    """A default that is an expression is said in words there. What an entry point requires can have no default."""
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text()) or {}
    required = {name for name, option in options_of(role) if option.get("required")}
    said = [(name, option["default"]) for name, option in options_of(role) if "default" in option]

    assert {name for name, _default in said} - required == set(defaults)
    for name, default in said:
        if name not in required and "{{" not in str(defaults[name]):
            assert default == defaults[name], name


@every_role
def test_an_option_has_the_name_of_its_role_and_is_not_both_required_and_with_a_default(role: Path) -> None:
    for name, option in options_of(role):
        assert name.startswith(f"{role.name}_")
        assert not (option.get("required") and "default" in option), name


@every_role
def test_no_secret_is_logged(role: Path) -> None:
    secrets = [each for each in with_suboptions(options_of(role)) if each[0].endswith(("password", "token"))]
    assert not [name for name, option in secrets if option.get("no_log") is not True]
