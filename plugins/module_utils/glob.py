# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The patterns of KEYS and SCAN MATCH, as the server reads them (redis 7.0, valkey 9.1, src/util.c, stringmatchlen).

Pure. A pattern becomes a regular expression on bytes, so that matching millions of keys costs little.

What is odd in them, and kept: a class without its closing bracket ends with the pattern; a range may be the wrong way
round; C([]) matches nothing and C([^]) any byte; a pattern of several stars does not match the empty key. Where a range
has one end below 0x80 and one above it, Redis compares as the C compiler's char does, signed on x86 and unsigned on
ARM; here it is unsigned.
"""

from __future__ import annotations

import re
import typing as t

_ANY = b"."
_NONE = b"(?!)"
_STAR = b"*"


def matcher(pattern: bytes) -> t.Callable[[bytes], t.Any]:
    """Give back what tells of a key whether it matches I(pattern), as something true or false."""
    tokens = list(_tokens(pattern))
    if tokens == [_STAR]:
        # All keys, without a look at them; with two stars there is a look, and the empty key has nothing to match.
        return re.compile(b".*" if pattern == b"*" else b".+", re.DOTALL).fullmatch
    return re.compile(_expression(tokens), re.DOTALL).fullmatch


def _expression(tokens: list[bytes]) -> bytes:
    """What stands between two stars is looked for once, at its first place: no later one leads to more matches."""
    parts: list[list[bytes]] = [[]]
    for token in tokens:
        if token == _STAR:
            parts.append([])
        else:
            parts[-1].append(token)
    first, *rest = (b"".join(part) for part in parts)
    if not rest:
        return first
    *middle, last = rest
    # An atomic group, for Python before 3.11: what a lookahead has found is not tried again.
    found = [b"(?=(?P<p%d>.*?%b))(?P=p%d)" % (at, part, at) for at, part in enumerate(middle)]
    return first + b"".join(found) + b".*" + last


def _tokens(pattern: bytes) -> t.Iterator[bytes]:
    """Give back regular expressions that match one byte each, and stars, never two in a row."""
    at, size = 0, len(pattern)
    was_star = False
    while at < size:
        byte = pattern[at]
        if byte == 0x2A:
            if not was_star:
                yield _STAR
            was_star, at = True, at + 1
            continue
        was_star = False
        if byte == 0x3F:
            yield _ANY
            at += 1
        elif byte == 0x5B:
            token, at = _class(pattern, at + 1)
            yield token
        else:
            # A backslash that ends the pattern stands for itself.
            at += byte == 0x5C and at + 1 < size
            yield _byte(pattern[at])
            at += 1


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Read what stands behind an opening bracket: give back its expression, and where the pattern goes on."""
    size = len(pattern)
    is_negated = pattern[at : at + 1] == b"^"
    at += is_negated
    taken: set[int] = set()
    while at < size and pattern[at] != 0x5D:
        if pattern[at] == 0x5C and at + 1 < size:
            taken.add(pattern[at + 1])
            at += 2
        elif at + 2 < size and pattern[at + 1] == 0x2D:
            low, high = sorted((pattern[at], pattern[at + 2]))
            taken.update(range(low, high + 1))
            at += 3
        else:
            taken.add(pattern[at])
            at += 1
    if is_negated:
        taken = set(range(256)) - taken
    return (b"[" + b"".join(map(_byte, sorted(taken))) + b"]" if taken else _NONE), at + 1


def _byte(value: int) -> bytes:
    return b"\\x%02x" % value
