# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The replies of a server, in whatever pieces they come."""

from __future__ import annotations

import socket
import threading

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.dump_wire import Payloads, Replies
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server, TemporaryRefusal

NAMES = {
    "none": [],
    "plain": [b"a", b"", b"key:1", b"$3", b"\x00\xff"],
    "with line ends": [b"a", b"\r\n", b"$1\r\nb\r\n", b"\r", b"c"],
    "large": [b"a", b"x" * (3 << 20), b"b"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("piece", [1, 7, 1 << 30])
def test_the_keys_of_a_scan_are_those_that_the_server_sent(names: list[bytes], piece: int) -> None:
    keys = [resp.bulk(name) for name in names]
    sent = b"*2\r\n$2\r\n17\r\n*%d\r\n" % len(keys) + b"".join(keys) + b"+OK\r\n"
    if len(sent) > 1 << 20:
        piece = max(piece, 100_000)
    here, there = socket.socketpair()
    with here, there:
        pieces = [sent[start : start + piece] for start in range(0, len(sent), piece)]
        sender = threading.Thread(target=lambda: [there.sendall(each) for each in pieces])
        sender.start()
        replies = Replies(Server(Address("127.0.0.1", 1)), here)
        assert replies.scanned() == (17, keys)
        assert replies.line() == b"+OK"
        sender.join()


ABORTED = b"-EXECABORT Transaction discarded because of"
REFUSALS = {
    "busy at EXEC": (ABORTED + b": BUSY Redis is busy running a script.\r\n", "refused MULTI: BUSY Redis", True),
    "not allowed": (ABORTED + b": NOPERM User app has no permissions\r\n", "refused MULTI: NOPERM User", False),
    "earlier errors": (ABORTED + b" previous errors.\r\n", "refused MULTI: EXECABORT Transaction", False),
}


@pytest.mark.parametrize(("said", "told", "passes"), REFUSALS.values(), ids=REFUSALS)
def test_what_exec_was_refused_for_is_told(said: bytes, told: str, passes: bool) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n" + said)
        with pytest.raises(KeyferryError, match=told) as caught:
            Replies(Server(Address("127.0.0.1", 1)), here).begin(Payloads((7, 0)), [resp.bulk(b"a")])
        assert isinstance(caught.value, TemporaryRefusal) is passes
