#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Gives the path of the Python of that version, as 3.9; fails where there is none. pyenv's shims answer for each that it
# could install, so they are asked to prove it.
set -euo pipefail

{
    type -aP "python$1" || true
    compgen -G "$HOME/.pyenv/versions/$1.*/bin/python$1" || true
} | while IFS= read -r candidate; do
    if path=$("$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null); then
        echo "$path"
        break
    fi
done | grep .
