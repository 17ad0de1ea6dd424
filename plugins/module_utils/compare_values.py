# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tells whether one key has the same value on two servers, in whatever way each of them keeps it in memory.

Values are read in pieces, so that one of any size takes little memory. Nothing that a server keeps about how a value
lies in memory counts, nor the order of what has none (fields of a hash, members of a set).
"""

from __future__ import annotations

import itertools
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.pair import (
    Command,
    Each,
    Pair,
    TooLarge,
    is_error,
    is_unknown,
)

_STRING_BYTES = 1 << 20
# Elements of a value to ask for at a time: fewer where these are large.
_ELEMENTS = (1000, 50, 1)
_LIMIT_BYTES = 4 << 20
# What of XINFO's replies is data: the rest is about memory, or is not in RDB files or not told to replicas.
_STREAM_FACTS = (b"length", b"last-generated-id", b"max-deleted-entry-id", b"entries-added", b"groups")
_GROUP_FACTS = (b"name", b"consumers", b"pending", b"last-delivered-id")
_CONSUMER_FACTS = (b"name", b"pending")


class _Changed(Exception):
    """The key is gone or has another type while it is being read."""


# How to read a value whole, where it is small: the command, and what it gets after the key.
_WHOLE: dict[str, tuple[str, Command]] = {
    "hash": ("HGETALL", ()),
    "list": ("LRANGE", (0, -1)),
    "set": ("SMEMBERS", ()),
    "zset": ("ZRANGE", (0, -1, "WITHSCORES")),
}


def whole_values(kind: str, keys: list[bytes]) -> Each:
    """Give back the question for the whole values of these keys, all of this kind."""
    name, rest = _WHOLE[kind]
    return Each(name, keys, rest)


def has_whole(kind: str) -> bool:
    """Tell whether whole_values knows a type; it tells nothing of TTLs that fields of a hash may have of their own."""
    return kind in _WHOLE


def normal(kind: str, reply: t.Any) -> t.Any:
    """Give back a whole value in a form that is equal where the values are."""
    if kind == "hash":
        return dict(zip(reply[::2], reply[1::2]))
    if kind == "set":
        return frozenset(reply)
    return _scored(reply) if kind == "zset" else reply


def can_read(kind: str) -> bool:
    """Tell whether same_value knows a type, as TYPE calls it; those of modules it does not."""
    return kind in _COMPARE


def same_value(pair: Pair, kind: str, key: bytes) -> bool:
    """Tell whether I(key), a I(kind) on both sides, has the same value there. Reads it in pieces."""
    for elements in _ELEMENTS:
        try:
            return _COMPARE[kind](pair, key, elements, _LIMIT_BYTES if elements > 1 else None)
        except TooLarge:
            continue
        except _Changed:
            break
    return False


def _same_string(pair: Pair, key: bytes, _elements: int, _limit: int | None) -> bool:
    length = _same_length(pair, "STRLEN", key)
    if length is None:
        return False
    return all(
        _is_same(pair, ("GETRANGE", key, start, start + _STRING_BYTES - 1)) for start in range(0, length, _STRING_BYTES)
    )


def _same_list(pair: Pair, key: bytes, elements: int, limit: int | None) -> bool:
    length = _same_length(pair, "LLEN", key)
    if length is None:
        return False
    return all(
        _is_same(pair, ("LRANGE", key, start, start + elements - 1), limit) for start in range(0, length, elements)
    )


def _same_zset(pair: Pair, key: bytes, elements: int, limit: int | None) -> bool:
    length = _same_length(pair, "ZCARD", key)
    if length is None:
        return False
    for start in range(0, length, elements):
        left, right = _one(pair, ("ZRANGE", key, start, start + elements - 1, "WITHSCORES"), limit)
        if _scored(left) != _scored(right):
            return False
    return True


def _same_set(pair: Pair, key: bytes, elements: int, limit: int | None) -> bool:
    """All of the source's members are in the target's set, which has as many."""
    if _same_length(pair, "SCARD", key) is None:
        return False
    return all(
        all(_sound(pair.target([("SMISMEMBER", key, *members)])[0]))
        for members in _scanned(pair, "SSCAN", key, elements, limit)
    )


def _same_hash(pair: Pair, key: bytes, elements: int, limit: int | None) -> bool:
    """All of the source's fields are in the target's hash, which has as many."""
    if _same_length(pair, "HLEN", key) is None:
        return False
    for found in _scanned(pair, "HSCAN", key, elements, limit):
        fields, values = found[::2], found[1::2]
        if _sound(pair.target([("HMGET", key, *fields)], limit)[0]) != values:
            return False
        if _field_ttls(pair.source, key, fields) != _field_ttls(pair.target, key, fields):
            return False
    return True


def knows_field_ttls(pair: Pair) -> bool:
    """Tell whether fields of a hash may have TTLs of their own on either side: since Redis 7.4 and Valkey 9."""
    replies = itertools.chain(*pair.both([("HPEXPIRETIME", b"", "FIELDS", 1, b"")]))
    return not all(map(is_unknown, replies))


def _field_ttls(ask: t.Callable[..., list[t.Any]], key: bytes, fields: list[bytes]) -> list[int]:
    """Give back when each field expires; -1 never, as on servers before Redis 7.4 and Valkey 9."""
    reply = ask([("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)])[0]
    return [-1] * len(fields) if is_unknown(reply) else _sound(reply)


def _same_stream(pair: Pair, key: bytes, elements: int, limit: int | None) -> bool:
    left, right = _one(pair, ("XINFO", "STREAM", key))
    groups, others = _one(pair, ("XINFO", "GROUPS", key))
    if _facts([left], _STREAM_FACTS) != _facts([right], _STREAM_FACTS):
        return False
    if _facts(groups, _GROUP_FACTS) != _facts(others, _GROUP_FACTS):
        return False
    return _same_pages(pair, ("XRANGE", key), ("COUNT", elements), elements, limit) and all(
        _same_group(pair, key, group[b"name"], elements, limit) for group in _facts(groups, _GROUP_FACTS)
    )


def _same_group(pair: Pair, key: bytes, group: bytes, elements: int, limit: int | None) -> bool:
    left, right = _one(pair, ("XINFO", "CONSUMERS", key, group))
    if _facts(left, _CONSUMER_FACTS) != _facts(right, _CONSUMER_FACTS):
        return False
    return _same_pages(pair, ("XPENDING", key, group), (elements,), elements, limit)


def _same_pages(pair: Pair, head: tuple[t.Any, ...], tail: tuple[t.Any, ...], elements: int, limit: int | None) -> bool:
    """Tell whether a range of rows that begin with a stream's id is the same on both sides, page by page."""
    first = b"-"
    while True:
        left, right = _one(pair, (*head, first, "+", *tail), limit)
        if _timeless(left) != _timeless(right):
            return False
        if len(left) < elements:
            return True
        first = b"(" + left[-1][0]


def _timeless(rows: list[t.Any]) -> list[t.Any]:
    """Give back the rows, those of XPENDING without the milliseconds from the delivery until now."""
    return [(*row[:2], *row[3:]) for row in rows]


def _facts(replies: list[t.Any], names: tuple[bytes, ...]) -> list[dict[bytes, t.Any]]:
    """Give back what XINFO says of each stream, group or consumer, by these names."""
    known = [dict(zip(reply[::2], reply[1::2])) for reply in replies]
    return [{name: facts.get(name) for name in names} for facts in known]


_COMPARE: dict[str, t.Callable[[Pair, bytes, int, int | None], bool]] = {
    "string": _same_string,
    "list": _same_list,
    "set": _same_set,
    "zset": _same_zset,
    "hash": _same_hash,
    "stream": _same_stream,
}


def _sound(reply: t.Any) -> t.Any:
    if is_error(reply):
        raise _Changed
    return reply


def _one(pair: Pair, command: tuple[t.Any, ...], limit: int | None = None) -> tuple[t.Any, t.Any]:
    left, right = pair.both([command], limit)
    return _sound(left[0]), _sound(right[0])


def _is_same(pair: Pair, command: tuple[t.Any, ...], limit: int | None = None) -> bool:
    left, right = _one(pair, command, limit)
    return bool(left == right)


def _same_length(pair: Pair, command: str, key: bytes) -> int | None:
    """Give back the length of both, or None where they differ."""
    left, right = _one(pair, (command, key))
    return left if left == right else None


def _scanned(pair: Pair, command: str, key: bytes, elements: int, limit: int | None) -> t.Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        cursor, found = _sound(pair.source([(command, key, cursor, "COUNT", elements)], limit)[0])
        if found:
            yield found
        if cursor == b"0":
            return


def _scored(reply: list[t.Any]) -> list[tuple[bytes, float]]:
    """Members and scores; servers write the same number in more than one way."""
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2])]
