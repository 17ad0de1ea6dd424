# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types have their names in a dump, and a string is one SET."""

from __future__ import annotations

import collections

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils import (
    commands,
    dump_forms,
    rdb_bytes,
    resp,
)


def test_types_are_counted_by_name() -> None:
    counted = dump_forms.count_types(collections.Counter({0: 3, 16: 1, 4: 1, 99: 2}))
    assert counted["types"] == {"hash": 2, "string": 3, "type 99": 2}
    assert counted["type_bytes"] == {"0": 3, "16": 1, "4": 1, "99": 2}


SIZED = st.sampled_from([0, 1, 63, 64, 16_383, 16_384]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
TTLS = st.sampled_from([b"-1", b"1", b"4000000000000"])


@given(st.binary(max_size=80), TTLS, st.one_of(st.binary(max_size=40), SIZED))
def test_a_string_is_one_command_in_every_form(name: bytes, ttl: bytes, value: bytes) -> None:
    key = resp.bulk(name)
    until = () if ttl == b"-1" else ("PXAT", ttl)
    made = b"".join(dump_forms.set_string(key, ttl, value))
    assert made == resp.command("SET", name, value, *until)
    before, after = dump_forms.set_around(key, ttl, len(value))
    assert b"".join((*before, value, *after)) == made
    plain, expiring = dump_forms.set_templates(b"%b")
    template, ttls = (expiring, (len(ttl), ttl)) if until else (plain, ())
    assert template % (key, len(value), value, *ttls) == made
    payload = b"\0" + rdb_bytes.write_length(len(value)) + value + bytes(10)
    assert commands.commands(name, ttl, payload) == [made]
