# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types have their names in a dump, and strings the form of their payload."""

from __future__ import annotations

import collections

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils import (
    commands,
    dump_forms,
    rdb_bytes,
    rdb_types,
    resp,
)
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64_of_few


def test_types_are_counted_by_name() -> None:
    counted = dump_forms.count_types(collections.Counter({0: 3, 16: 1, 4: 1, 99: 2}))
    assert counted["types"] == {"hash": 2, "string": 3, "type 99": 2}
    assert counted["type_bytes"] == {"0": 3, "16": 1, "4": 1, "99": 2}


SIZED = st.sampled_from([0, 1, 63, 64, 16_383, 16_384]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
TTLS = st.sampled_from([b"-1", b"1", b"4000000000000"])


@given(st.binary(max_size=80), TTLS, st.one_of(st.binary(max_size=40), SIZED))
def test_a_string_is_put_as_its_payload_would_be(name: bytes, ttl: bytes, value: bytes) -> None:
    key = resp.bulk(name)
    made = b"".join(dump_forms.RESTORE.string_encoder()(key, ttl, value))
    payload = _argument(made, 3)
    before, after = dump_forms.restore(key, ttl)
    assert made == before + resp.bulk(payload) + after
    assert rdb_bytes.read_string(payload, 1) == (value, len(payload) - 10)
    assert payload[0] == rdb_types.STRING
    assert int.from_bytes(payload[-10:-8], "little") == dump_forms.STRING_VERSION
    assert int.from_bytes(payload[-8:], "little") == crc64_of_few(payload[:-8])
    head = dump_forms.string_head(len(value))
    pieces = (value[:7], value[7:])
    around = dump_forms.restore(key, ttl)
    in_pieces = dump_forms.restore_in_pieces(around, head, pieces, len(value), dump_forms.STRING_VERSION)
    assert b"".join(in_pieces) == made
    as_commands = dump_forms.COMMANDS.string_encoder()(key, ttl, value)
    assert list(as_commands) == commands.commands(name, ttl, payload)


def _argument(command: bytes, index: int) -> bytes:
    return command[slice(*resp.read_command(command, 0, len(command)).arguments[index])]
