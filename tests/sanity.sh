#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs ansible-test sanity. It wants to stand in a real folder ansible_collections/keyferry/redis, so the files that
# git knows are copied there; and a pip of its own, which it would fetch from a host that not everybody reaches.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/.build
tree=$build/sanity/ansible_collections
pythons=
for name in 3.9 3.10 3.11 3.12 3.13; do
    if python=$(bash "$top/tests/python.sh" "$name"); then
        pythons+=:$(dirname "$python")
    fi
done

rm -rf "$tree"
bash "$top/tests/copy.sh" "$tree/keyferry/redis"
ln -s "$build/collections/ansible_collections/amazon" "$tree/amazon"
# A repository of its own, or ansible-test asks the one around it, which ignores this folder.
git -C "$tree/keyferry/redis" init -q
git -C "$tree/keyferry/redis" add -A

# ansible-test keeps what it builds under HOME; the stand-in for get-pip.py installs what it is asked to by ensurepip.
export HOME=$build/sanity/home
mkdir -p "$HOME/.ansible/test/cache"
cat >"$HOME/.ansible/test/cache/get_pip_24_2.py" <<'PY'
import subprocess
import sys

packages = [word for word in sys.argv[1:] if not word.startswith("--no-")]
subprocess.check_call([sys.executable, "-m", "ensurepip"])
subprocess.check_call([sys.executable, "-m", "pip", "install", *packages])
subprocess.call([sys.executable, "-m", "pip", "uninstall", "-y", "setuptools"])
PY

# compile and import run on every Python there is, of those that the modules are for; ansible-test names those that it
# does not find. No shim may be on the PATH that answers for a Python that is not there.
PATH=$build/venv/bin:/usr/local/bin:/usr/bin:/bin$pythons
cd "$tree/keyferry/redis"
exec ansible-test sanity --local --color no "$@"
