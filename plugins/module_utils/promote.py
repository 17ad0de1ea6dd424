# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes one database the only data of a server, under the number that is wanted, by FLUSHDB and SWAPDB alone.

Everything is one transaction, so that nobody ever sees, and no failure ever leaves, a part of it. The databases that go
are flushed before the swap: a state in which others than the target hold keys can therefore not be the end of a run,
and an end is told from a beginning by the keyspace alone.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import (
    SERVICE_DB,
    Keyspace,
    data_keyspace,
    key_count,
)
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Command, Side, Wire, is_error, packed
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server


class Plan(t.NamedTuple):
    """What is to be done: the databases to flush, in order, and whether to swap; C(keys) are those promoted."""

    flush: list[int]
    swap: bool
    keys: int

    def commands(self, db: int, target_db: int) -> list[Command]:
        commands: list[Command] = [
            command for number in self.flush for command in (("SELECT", number), ("FLUSHDB", "ASYNC"))
        ]
        return [*commands, ("SWAPDB", db, target_db)] if self.swap else commands


def plan(keyspace: Keyspace, db: int, target_db: int, min_keys: int | None) -> Plan:
    """Give back what makes I(db) the only data, as I(target_db); nothing to do where it was promoted already.

    Raises KeyferryError where that cannot be told from a mistake.
    """
    held = {number: facts.keys for number, facts in keyspace.databases.items()}
    keys, target_keys = held.get(db, 0), held.get(target_db, 0)
    if not keys and set(held) == {target_db}:
        _refuse_too_few(target_db, target_keys, min_keys)
        return Plan([], False, target_keys)
    if not keys:
        raise KeyferryError(
            f"Database {db} is empty, so there is nothing to promote, and what was promoted before would be all there"
            f" is: {_shown(held)}. Nothing was changed. Is it the right server, and the right db?"
        )
    _refuse_too_few(db, keys, min_keys)
    if db == target_db:
        return Plan(sorted(set(held) - {db}), False, keys)
    if target_keys > keys and min_keys is None:
        raise KeyferryError(
            f"Database {target_db} holds more keys than database {db} that would replace it ({_shown(held)}): it may"
            f" have been promoted before, and something wrote to database {db} since. Nothing was changed. Set min_keys"
            f" to the number of keys that database {db} must have, to say that it is the one to keep"
        )
    # The key that ElastiCache keeps for itself is no data, but must not come to lie in database I(db).
    doomed = set(held) | ({SERVICE_DB} & {target_db} if keyspace.service_keys else set())
    return Plan(sorted(doomed - {db}), True, keys)


def promote(
    server: Server, run_id: str, db: int, target_db: int, min_keys: int | None, dry_run: bool
) -> dict[str, t.Any]:
    """Do it, in the process I(run_id) only; give back C(changed), C(keys) in the target, C(flushed), and each
    database's keys C(before) and C(after).

    Raises KeyferryError, with nothing changed, where the server cannot or must not do it.
    """
    _check_server(server)
    for number in (db, target_db):
        server.dbsize(number)
    keyspace = data_keyspace(server)
    to_do = plan(keyspace, db, target_db, min_keys)
    before = {number: facts.keys for number, facts in keyspace.databases.items()}
    commands = to_do.commands(db, target_db)
    if commands:
        _transact(server, run_id, db, commands, "DISCARD" if dry_run else "EXEC")
    return {
        "changed": bool(commands),
        "keys": to_do.keys if dry_run else key_count(server, target_db),
        "flushed": {str(number): before[number] for number in to_do.flush if number in before},
        "before": before,
        "after": {target_db: to_do.keys},
    }


def _check_server(server: Server) -> None:
    if server.is_cluster():
        raise KeyferryError(
            f"Redis at {server} is in cluster mode, as every serverless cache is, and that has no SWAPDB. Nothing was"
            " changed. Restore into an ElastiCache with cluster mode disabled, or use another strategy"
        )
    if server.info("replication")["role"] != "master":
        raise KeyferryError(
            f"Redis at {server} is a replica, which cannot be written to. Nothing was changed. Use the primary's"
            " endpoint"
        )


def _transact(server: Server, run_id: str, db: int, commands: list[Command], end: str) -> None:
    """Queue the commands and I(end) the transaction, by EXEC or by DISCARD.

    A server refuses what it has not, or what the ACL forbids, when it is queued: then nothing is done.
    """
    with contextlib.closing(Wire(Side(server, db, run_id))) as wire:
        for command in [("MULTI",), *commands]:
            expected = b"OK" if command == ("MULTI",) else b"QUEUED"
            reply = _ask(wire, command)
            if reply != expected:
                raise KeyferryError(
                    f"Redis at {server} does not take {_text(command)}: {reply}. Nothing was changed. Is the command"
                    " renamed (parameter group), or forbidden to this user (ACL)?"
                )
        reply = _ask(wire, (end,))
    failures = [element for element in (reply if isinstance(reply, list) else [reply]) if is_error(element)]
    if failures:
        raise KeyferryError(
            f"Redis at {server} refused {', '.join(map(_text, commands))}: {failures[0]}. Look at the server's"
            " databases with redis_keyspace_info; this module can be run again"
        )


def _ask(wire: Wire, command: Command) -> t.Any:
    wire.send(packed([command]))
    return wire.receive(1, None)[0][0]


def _refuse_too_few(db: int, keys: int, min_keys: int | None) -> None:
    if keys < (min_keys or 0):
        raise KeyferryError(
            f"Database {db} holds {keys} keys, fewer than min_keys={min_keys}. Nothing was changed. Is it the right"
            " server, and is its data complete?"
        )


def _text(command: Command) -> str:
    return " ".join(map(str, command))


def _shown(held: dict[int, int]) -> str:
    return ", ".join(f"database {db}: {keys} keys" for db, keys in held.items()) or "no database holds keys"
