# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands and replies of the protocol are found and counted however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils import resp

ARGUMENTS = st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 1 << 64)), min_size=1, max_size=6)
REPLIES = st.recursive(
    st.one_of(
        st.sampled_from([b"+OK\r\n", b"+QUEUED\r\n", b":0\r\n", b":-12\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n"]),
        st.binary(max_size=20).map(lambda data: b"$%d\r\n%b\r\n" % (len(data), data)),
    ),
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: b"*%d\r\n%b" % (len(parts), b"".join(parts))),
    max_leaves=8,
)
ERRORS = st.sampled_from([b"-ERR no\r\n", b"-OOM command not allowed\r\n"])


@given(st.lists(ARGUMENTS, min_size=1, max_size=5))
def test_commands_are_found_where_they_stand(commands: list[list[bytes | int]]) -> None:
    data = b"".join(resp.command(*arguments) for arguments in commands)
    position = 0
    for arguments in commands:
        found = resp.read_command(data, position, len(data))
        as_bytes = [part if isinstance(part, bytes) else b"%d" % part for part in arguments]
        assert [data[first:last] for first, last in found.arguments] == as_bytes
        position = found.end
    assert position == len(data)


@given(ARGUMENTS, st.data())
def test_a_command_cut_anywhere_is_incomplete(arguments: list[bytes | int], data: st.DataObject) -> None:
    whole = resp.command(*arguments)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(resp.ProtocolError) as raised:
        resp.read_command(whole[:cut], 0, cut)
    assert raised.value.incomplete and raised.value.offset <= cut


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"PING inline command\r\n", 0),
        (b"*0\r\n$4\r\nPING\r\n", 0),
        (b"*1\r\n+4\r\nPING\r\n.....", 4),
        (b"*1\r\n$4\r\nPING!\r\n....", 12),
        (b"*1\r\n$-1\r\n............", 4),
    ],
)
def test_what_is_no_command_is_told_by_its_byte(data: bytes, offset: int) -> None:
    with pytest.raises(resp.ProtocolError) as raised:
        resp.read_command(data, 0, len(data))
    assert (raised.value.offset, raised.value.incomplete) == (offset, False)


@given(st.lists(st.one_of(REPLIES, ERRORS), max_size=12), st.lists(st.integers(0, 200), max_size=8))
def test_replies_are_counted_however_they_arrive(replies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(replies)
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    counter = resp.ReplyCounter()
    start = 0
    for end in ends:
        counter.feed(stream[start:end])
        start = end
    assert counter.replies == len(replies)
    assert counter.errors == {at: reply[1:-2] for at, reply in enumerate(replies) if reply.startswith(b"-")}


@pytest.mark.parametrize(
    ("reply", "errors"),
    [
        (b"*2\r\n:1\r\n-WRONGTYPE no list\r\n", {1: b"WRONGTYPE no list"}),
        (b"*2\r\n*1\r\n-ERR one\r\n-ERR two\r\n", {1: b"ERR one"}),
        (b"*2\r\n$11\r\nno\r\n-ERR no\r\n*-1\r\n", {}),
    ],
)
def test_an_error_in_what_exec_answers_is_one(reply: bytes, errors: dict[int, bytes]) -> None:
    counter = resp.ReplyCounter()
    counter.feed(b"+OK\r\n" + reply + b"+OK\r\n")
    assert (counter.replies, counter.errors) == (3, errors)


def test_a_stream_that_is_no_reply_is_an_error() -> None:
    with pytest.raises(resp.ProtocolError, match="expected a reply"):
        resp.ReplyCounter().feed(b"$2\r\nOK\r\nHTTP/1.1 400\r\n")
