#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_follow
short_description: Keep a database equal to another one that is written to, while the application moves
version_added: 0.2.0
author: The keyferry.redis authors (@keyferry)
description:
  - Compares database O(db) of the source (O(login_host)) with database O(target_db) of the target
    (O(target_login_host)) and repairs the target, as M(keyferry.redis.redis_compare) does with its option repair.
  - Then looks again at every key that has been written to on the source since before that comparison, and copies it
    (RESTORE with REPLACE and ABSTTL) or removes it (UNLINK), until it is asked to end.
  - The application may be pointed at the target meanwhile. A key that somebody else has written to on the target since
    the comparison is never written to again. If the source writes to such a key too, it is a conflict; the target
    keeps its own, and RV(conflicts) and RV(examples) report it.
  - So it is run in the background (C(async), with C(poll) 0) from before the application is switched until after it.
    O(state=ready) waits until it follows, O(state=stopped) ends it and gives back what it did. These find it by
    O(progress_file), whatever has become of the play that started it.
  - The servers themselves report which keys are written to (CLIENT TRACKING with BCAST), which needs Redis 7.0 or
    Valkey on both sides but neither CONFIG nor DEBUG nor keyspace notifications. ElastiCache Serverless refuses it.
  - The names of keys come from every database of a server, without its number. One from another database of the source
    costs a look at that name and does no harm. One from another database of the target counts as written to in
    O(target_db), so that a target with applications in several of them, under the same names, shows conflicts that
    are not real ones.
  - O(login_host) may be a replica of the source, which reports all that is replicated to it, and is what is read then.
    It settles only once the replica has heard from its primary since it was asked to end, within some 10 seconds.
  - Either side may be a cluster (cluster mode enabled), whose slots must not move meanwhile.
  - Servers do not report what consumer groups do (C(XREADGROUP), C(XACK), C(XGROUP) and the like). Groups of streams
    are therefore looked at again and again, about every second where there are few, and all of them in full before it
    ends. A stream whose group has read or acknowledged something on the target since it was copied counts as written to
    there, but for the milliseconds in which the stream is being copied.
  - Servers do not report SWAPDB on the source. Of a key that the target has expired, and that the source has written to
    within about a tenth of a second, it is not known whether the application has removed it; it is copied.
    A key that the source has removed and the target's application has written to is no conflict.
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.target_connection
  - keyferry.redis.protected
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: partial
    details:
      - With O(state=running), only finds out whether both sides report which keys are written to, and fails where
        one does not. With O(state=stopped), nothing is ended, and what was done so far is returned. Nothing is written
        to O(progress_file).
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - O(state=running) begins again each time. The others can be repeated.
options:
  state:
    description:
      - V(running) compares, repairs and follows, and returns when it is asked to end.
      - V(ready) waits until the one that O(progress_file) belongs to follows, and has copied all that was written
        during its comparison. It fails when that one is no longer running.
      - V(stopped) asks it to end, waits until it has, and returns its result.
    type: str
    choices: [running, ready, stopped]
    default: running
  progress_file:
    description:
      - The file that belongs to one that follows. JSON with its return values so far, C(pid), C(state) (V(comparing),
        V(following), V(done) or V(failed)) and, where it failed, C(msg).
      - Remove what an earlier one has left under this name before O(state=running), so that O(state=ready) does not
        take it for the new one's.
      - Beside it, a file with C(.lock) added to its name is held locked as long as it runs, and one with C(.stop) added
        asks it to end.
    type: path
    required: true
  db:
    description: Number of the source's database. Needed with O(state=running).
    type: int
  target_db:
    description: Number of the target's database.
    type: int
    default: 0
  settle_seconds:
    description: Once it is asked to end, it ends when nothing has had to be copied for this many seconds.
    type: float
    default: 5
  settle_timeout:
    description:
      - Once it is asked to end, it ends after this many seconds at the latest. RV(settled) tells whether the source
        was quiet by then.
      - O(state=stopped) may name fewer than it was started with. With V(0) it ends at once.
    type: float
    default: 600
  timeout:
    description:
      - With O(state=running), it ends after this many seconds even if nobody asks it to. What is written later is not
        copied.
      - With the others, how many seconds to wait at most.
    type: float
    default: 86400
  max_keys:
    description:
      - Names of keys to keep in memory at most, of each side. Where more different keys than that are written to on the
        source during the comparison, or wait to be looked at later, or are written to on the target in all, it ends
        with RV(lost), or fails where it was not ready yet.
    type: int
    default: 1000000
  ttl_tolerance_ms:
    description: By how many milliseconds two TTLs may differ, and two servers' clocks.
    type: int
    default: 0
  workers:
    description: Number of connections to each side for the comparison.
    type: int
  max_keys_per_second:
    description: Read no more keys than this per second in the comparison. No limit without it.
    type: int
requirements:
  - hiredis (Python library) >= 3.0.0
notes:
  - An ACL user needs C(on ~* +@read +@connection +time +info +cluster|info +client|tracking) on the source, and on the
    target also C(+@write +@transaction +cluster|slots).
seealso:
  - module: keyferry.redis.redis_compare
"""

EXAMPLES = r"""
- name: Forget what an earlier one has left
  ansible.builtin.file:
    path: /var/lib/keyferry/follow.json
    state: absent

- name: Follow the source in the background
  keyferry.redis.redis_follow:
    login_host: replica.shared.example.euc1.cache.amazonaws.com
    login_password: "{{ auth_token }}"
    tls: true
    db: 1
    target_login_host: master.sessions.example.euc1.cache.amazonaws.com
    target_login_password: "{{ new_auth_token }}"
    target_tls: true
    target_db: 0
    ttl_tolerance_ms: 1000
    protected_run_ids: "{{ source_run_ids }}"
    progress_file: /var/lib/keyferry/follow.json
  async: 90000
  poll: 0

- name: Wait until the target is equal and kept so
  keyferry.redis.redis_follow:
    state: ready
    progress_file: /var/lib/keyferry/follow.json

# The application is pointed at the target here.

- name: End it when the source is quiet
  keyferry.redis.redis_follow:
    state: stopped
    progress_file: /var/lib/keyferry/follow.json
  register: followed

- name: Say whether anything may be missing
  ansible.builtin.debug:
    msg: >-
      {{ followed.conflicts }} keys were written to on both sides.
      {{ 'Compare without repair: ' ~ followed.lost_reason if followed.lost else 'Nothing else is missing.' }}
"""

RETURN = r"""
lost:
  description:
    - Whether some writes to the source may be missing on the target, as a connection broke, a side was flushed, more
      than O(max_keys) names had to be kept, O(timeout) was over, the process was killed, or it failed before it
      followed.
    - Compare then, with M(keyferry.redis.redis_compare) and without its repair, as that would undo what the application
      has written to the target.
  returned: success, except with O(state=running) in check mode
  type: bool
  sample: false
lost_reason:
  description: What has happened, empty where RV(lost) is V(false).
  returned: success, except with O(state=running) in check mode
  type: str
  sample: ""
settled:
  description: Whether it ended because nothing had to be copied any more. Otherwise the source is still written to.
  returned: success, except with O(state=running) in check mode
  type: bool
  sample: true
round:
  description:
    - The comparison at its beginning, with the return values of M(keyferry.redis.redis_compare), C(began) (seconds
      since 1970) and C(seconds). Empty where it was not done.
  returned: success, except with O(state=running) in check mode
  type: dict
  sample: {"equal": false, "missing": 812, "extra": 3, "different": 94, "repaired": 906, "seconds": 173.2}
followed:
  description: Names of keys that the source has sent and that were looked at, each as often as it was.
  returned: success, except with O(state=running) in check mode
  type: int
  sample: 52144
copied:
  description: Keys that were copied since the comparison.
  returned: success, except with O(state=running) in check mode
  type: int
  sample: 9120
deleted:
  description: Keys that were removed from the target since the comparison.
  returned: success, except with O(state=running) in check mode
  type: int
  sample: 131
conflicts:
  description: Keys that were written to on both sides, with different outcomes. The target has kept its own.
  returned: success, except with O(state=running) in check mode
  type: int
  sample: 2
examples:
  description: At most ten of them, odd bytes escaped.
  returned: success, except with O(state=running) in check mode
  type: dict
  sample: {"conflicts": ["'cart:4711'", "'counter'"]}
running:
  description: Whether it is still running, where it is not ready.
  returned: failure, when O(state=ready)
  type: bool
  sample: false
supported:
  description: V(false) where a server does not report which keys are written to.
  returned: failure, when O(state=running)
  type: bool
  sample: false
elapsed:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 412.7
"""

import functools
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_redis import (
    PROTECTED_SPEC,
    connection_spec,
    refuse_protected,
    require_positive,
    server_of,
)
from ansible_collections.keyferry.redis.plugins.module_utils.compare import Comparison
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.follow import Following, check, follow
from ansible_collections.keyferry.redis.plugins.module_utils.follow_files import FollowFiles

TARGET = "target_"


def work(module: AnsibleModule) -> dict[str, t.Any]:
    started = time.monotonic()
    params = module.params
    files = FollowFiles(params["progress_file"])
    if params["state"] == "running":
        result = _may_follow(files, params) if module.check_mode else _follow(files, params)
    elif params["state"] == "ready":
        result = {**files.wait_ready(params["timeout"]), "changed": False}
    else:
        is_running = files.is_held()
        facts = files.outcome() if module.check_mode else files.wait_ended(params["timeout"], params["settle_timeout"])
        result = {**facts, "changed": is_running}
    for name in ("state", "pid"):
        result.pop(name, None)
    return {**result, "elapsed": round(time.monotonic() - started, 3)}


def _may_follow(files: FollowFiles, params: dict[str, t.Any]) -> dict[str, t.Any]:
    _check(params)
    files.require_free()
    check(*_sides(params))
    return {"changed": False}


def _follow(files: FollowFiles, params: dict[str, t.Any]) -> dict[str, t.Any]:
    _check(params)
    with files.held():
        # So that nobody takes what an earlier one has left for this one's.
        files.write("comparing", {})
        try:
            result = _follow_alone(files, params)
        except KeyferryError as error:
            files.write("failed", {"msg": error.msg, **error.result})
            raise
        files.write("done", result)
    return result


def _follow_alone(files: FollowFiles, params: dict[str, t.Any]) -> dict[str, t.Any]:
    comparison = Comparison(
        *_sides(params),
        ttl_tolerance_ms=params["ttl_tolerance_ms"],
        repair=True,
        workers=params["workers"],
        max_keys_per_second=params["max_keys_per_second"],
    )
    limits = {name: params[name] for name in ("max_keys", "settle_seconds", "settle_timeout", "timeout")}
    result = follow(Following(comparison, **limits), files.write, files.end_within)
    counts = (result["round"]["repaired"], result["round"]["deleted"], result["copied"], result["deleted"])
    return {"changed": any(counts), **result}


def _sides(params: dict[str, t.Any]) -> tuple[Endpoint, Endpoint]:
    source = Endpoint(server_of(params), params["db"])
    return source, Endpoint(
        server_of(params, TARGET), params["target_db"], functools.partial(refuse_protected, params=params)
    )


def _check(params: dict[str, t.Any]) -> None:
    require_positive(params, "workers", "max_keys_per_second", "max_keys")
    for name in ("ttl_tolerance_ms", "settle_seconds", "settle_timeout", "timeout"):
        if params[name] < 0:
            raise KeyferryError(f"{name} is {params[name]}; it must be at least 0")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            **connection_spec(TARGET),
            **PROTECTED_SPEC,
            "state": {"type": "str", "choices": ["running", "ready", "stopped"], "default": "running"},
            "progress_file": {"type": "path", "required": True},
            "db": {"type": "int"},
            "target_db": {"type": "int", "default": 0},
            "settle_seconds": {"type": "float", "default": 5},
            "settle_timeout": {"type": "float", "default": 600},
            "timeout": {"type": "float", "default": 86400},
            "max_keys": {"type": "int", "default": 1000000, "no_log": False},
            "ttl_tolerance_ms": {"type": "int", "default": 0},
            "workers": {"type": "int"},
            "max_keys_per_second": {"type": "int", "no_log": False},
        },
        required_if=[("state", "running", ("db",))],
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
