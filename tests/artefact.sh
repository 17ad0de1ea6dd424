#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What a user gets: builds the collection from the files that git knows, installs it elsewhere, and runs the playbook by
# its name against a small lab.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
# A user's checkout lies anywhere; nothing here may be found by the way of this one.
unset ANSIBLE_CONFIG ANSIBLE_COLLECTIONS_PATH

end() {
    [ ! -S "$work/lab/host/supervisor.sock" ] ||
        python -m supervisor.supervisorctl -c "$work/lab/host/supervisord.conf" shutdown >/dev/null || true
    python -m lab stop --dir "$work/lab" >/dev/null
    rm -rf "$work"
}
trap end EXIT

mkdir -p "$work/collections/ansible_collections"
bash "$top/tests/copy.sh" "$work/source"
ansible-galaxy collection build --output-path "$work" "$work/source"
ln -s "$top/.build/collections/ansible_collections/amazon" "$work/collections/ansible_collections/amazon"
cd "$work"
export ANSIBLE_COLLECTIONS_PATH=$work/collections
ansible-galaxy collection install --offline -p "$work/collections" keyferry-redis-*.tar.gz
unwanted=$(tar -tf keyferry-redis-*.tar.gz | grep -E '(^|/)(tests|\.[^/]+|.*\.pyc|Makefile)(/|$)' || true)
if [ -n "$unwanted" ]; then
    echo "artefact: these files should not be in it: $unwanted" >&2
    exit 1
fi

python -m lab start --dir "$work/lab" --keys 1000 >/dev/null
export KEYFERRY_LAB_DIR=$work/lab
ansible-playbook keyferry.redis.migrate_db -i "$top/tests/lab/inventory" -e src_db=1
python -m lab prove --dir "$work/lab" --source-group shared-redis --source-db 1 \
    --target-group shared-redis-db1 --target-db 0
