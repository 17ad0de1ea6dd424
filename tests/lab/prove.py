# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The independent check: two databases compared key by key, by the servers' own DEBUG DIGEST-VALUE and PEXPIRETIME."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
from redis.crc import key_slot

from .groups import TIMESTAMP_KEY, Shard, batches
from .wire import Wire, encode

EXAMPLES = 10
# One call for the PEXPIRETIME of many keys; as arguments, since cluster mode wants the keys of a call in one slot.
EXPIRY = (b"EVAL", b"local r={} for i,k in ipairs(ARGV) do r[i]=redis.call('PEXPIRETIME',k) end return r", b"0")
NO_KEY = b"0" * 40
# What XINFO STREAM says about how the stream lies in memory, and what a replica does not get from its primary (Redis
# 7.0: when a consumer was seen, how many entries a group has read), so that a snapshot of the replica lacks it.
VOLATILE = {b"radix-tree-keys", b"radix-tree-nodes", b"seen-time", b"active-time", b"entries-read", b"lag"}


class Side:
    """One database of a replication group: its primaries, asked as the admin user."""

    def __init__(self, info: dict[str, Any], group: dict[str, Any], db: int) -> None:
        login = {"username": info["admin_user"], "password": info["admin_password"]}
        if group["ca_certs"]:
            login |= {"ssl": True, "ssl_ca_certs": group["ca_certs"]}
        nodes = [node for node in group["nodes"] if node["role"] == "primary"]
        self.db = db
        self.primaries = [redis.Redis(host="127.0.0.1", port=node["port"], db=db, **login) for node in nodes]
        wires = [Wire(primary) for primary in self.primaries]
        self._owners = {
            slot: wire
            for node, wire in zip(nodes, wires, strict=True)
            for first, last in Shard("", node["slots"], ()).slot_ranges()
            for slot in range(first, last + 1)
        }

    def key_batches(self, kind: str | None = None) -> Iterator[list[bytes]]:
        """All keys in batches, of one type only where `kind` is given; without the key that ElastiCache keeps."""
        for primary in self.primaries:
            found = primary.scan_iter(count=1000, _type=kind)
            yield from batches((key for key in found if (self.db, key) != (0, TIMESTAMP_KEY)), 1000)

    def facts(self, keys: list[bytes]) -> list[tuple[bytes, int]]:
        """(digest of the value, time of expiry in ms; -1 never, -2 no such key) of each key."""
        facts: dict[bytes, tuple[bytes, int]] = {}
        for wire, owned in self._by_owner(keys).items():
            digests, times = wire.ask([encode(b"DEBUG", b"DIGEST-VALUE", *owned), encode(*EXPIRY, *owned)])
            facts.update(zip(owned, zip(digests, times, strict=True), strict=True))
        return [facts[key] for key in keys]

    def expiries(self, keys: list[bytes]) -> list[int]:
        """The time of expiry of each key, as in `facts`."""
        times: dict[bytes, int] = {}
        for wire, owned in self._by_owner(keys).items():
            times.update(zip(owned, wire.ask([encode(*EXPIRY, *owned)])[0], strict=True))
        return [times[key] for key in keys]

    def streams(self, keys: list[bytes]) -> list[Any]:
        """The ids, groups, consumers and pending entries of streams, which their digests leave out."""
        found: dict[bytes, Any] = {}
        for wire, owned in self._by_owner(keys).items():
            replies = wire.ask([encode(b"XINFO", b"STREAM", key, b"FULL", b"COUNT", b"0") for key in owned])
            found.update(zip(owned, map(_stable, replies), strict=True))
        return [found[key] for key in keys]

    def libraries(self) -> list[set[tuple[bytes, bytes]]]:
        """(name, code) of the libraries of functions of each primary."""
        each = [primary.function_list(withcode=True) for primary in self.primaries]
        facts = [[dict(zip(library[::2], library[1::2], strict=True)) for library in found] for found in each]
        return [{(library[b"library_name"], library[b"library_code"]) for library in found} for found in facts]

    def _by_owner(self, keys: list[bytes]) -> dict[Wire, list[bytes]]:
        if len(self.primaries) == 1:
            return {self._owners[0]: keys}
        owned: dict[Wire, list[bytes]] = {}
        for key in keys:
            owned.setdefault(self._owners[key_slot(key)], []).append(key)
        return owned


def prove(info: dict[str, Any], source_group: str, source_db: int, target_group: str, target_db: int) -> dict[str, Any]:
    """Compare both ways: {equal, keys, expired, missing, extra, different, functions}; the lists hold the first ten.

    `functions` are the libraries of functions that a primary of the target lacks. `keys` counts what the source holds
    and has not expired; `info` is the object of lab.json.
    """
    with urllib.request.urlopen(f"{info['endpoint_url']}/_lab/groups") as answer:
        groups = json.load(answer)
    if unknown := {source_group, target_group} - set(groups):
        raise SystemExit(f"the lab has no replication group {', '.join(sorted(unknown))}")
    source = Side(info, groups[source_group], source_db)
    target = Side(info, groups[target_group], target_db)
    tally = _Tally()
    with ThreadPoolExecutor(2) as both:
        for keys in source.key_batches():
            for key, here, there in zip(keys, *both.map(lambda side: side.facts(keys), (source, target)), strict=True):  # noqa: B023
                tally.source_key(key, here, there)
    for keys in target.key_batches():
        unknown_keys = [key for key, time in zip(keys, source.expiries(keys), strict=True) if time == -2]
        for key, there in zip(unknown_keys, target.facts(unknown_keys), strict=True):
            if not _is_over(there):
                tally.note("extra", key)
    for batch in source.key_batches("stream"):
        keys = [key for key in batch if key not in tally.bad]
        for key, here, there in zip(keys, source.streams(keys), target.streams(keys), strict=True):
            if here != there:
                tally.note("different", key)
    tally.functions = {name for there in target.libraries() for name, _code in source.libraries()[0] - there}
    return tally.verdict()


class _Tally:
    def __init__(self) -> None:
        self.keys = self.expired = 0
        self.bad: dict[bytes, str] = {}
        self.functions: set[bytes] = set()

    def source_key(self, key: bytes, here: tuple[bytes, int], there: tuple[bytes, int]) -> None:
        if _is_over(here):
            self.expired += 1
            return
        self.keys += 1
        if there[0] == NO_KEY:
            self.note("missing", key)
        elif here != there:
            self.note("different", key)

    def note(self, how: str, key: bytes) -> None:
        self.bad[key] = how

    def verdict(self) -> dict[str, Any]:
        lists = {
            how: [key.decode(errors="backslashreplace") for key, found in self.bad.items() if found == how][:EXAMPLES]
            for how in ("missing", "extra", "different")
        }
        equal = not self.bad and not self.functions
        functions = sorted(name.decode() for name in self.functions)
        return {"equal": equal, "keys": self.keys, "expired": self.expired, **lists, "functions": functions}


def _is_over(facts: tuple[bytes, int]) -> bool:
    """Whether a key was gone when it was asked for, or has expired since."""
    return facts[0] == NO_KEY or 0 <= facts[1] <= time.time() * 1000


def _stable(info: Any) -> Any:
    """A reply of XINFO without what may differ between two copies of one stream; maps are lists in RESP 2."""
    if isinstance(info, dict):
        info = [part for pair in info.items() for part in pair]
    if not isinstance(info, list):
        return info
    kept = []
    parts = iter(info)
    for part in parts:
        if isinstance(part, bytes) and part in VOLATILE:
            next(parts)
            continue
        kept.append(_stable(part))
    return kept
