#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What Ansible Galaxy and an Execution Environment make of the collection: builds it from the files that git knows, lets
# galaxy-importer import it, and has ansible-builder read what the installed collection needs.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
importer=$top/.build/importer/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    printf 'galaxy: %s\n' "$*" >&2
    exit 1
}

bash "$top/tests/copy.sh" "$work/source"
mkdir -p collections/ansible_collections/keyferry/redis
ansible-galaxy collection build --output-path . source
artefact=$(echo keyferry-redis-*.tar.gz)
tar -xf "$artefact" -C collections/ansible_collections/keyferry/redis

# It goes on after a finding and ends with 0. ansible-lint is another step of `make lint`, with the production profile.
export GALAXY_IMPORTER_RUN_ANSIBLE_LINT=false GALAXY_IMPORTER_CHECK_REQUIRED_TAGS=true
PATH=$importer:$PATH "$importer/python" -m galaxy_importer.main "$artefact" 2>&1 | tee import.log
if grep -E '^(WARNING|ERROR): ' import.log >findings; then
    fail "galaxy-importer found $(wc -l <findings) things, marked WARNING or ERROR above"
fi

"$importer/ansible-builder" introspect --write-pip python.txt --write-bindep system.txt collections >/dev/null
for file in meta/requirements.txt:python.txt bindep.txt:system.txt; do
    while IFS= read -r need; do
        grep -qF "${need%% \[*}" "${file#*:}" || fail "${file%:*}: an Execution Environment does not get $need"
    done < <(grep -vE '^(#|$)' "$top/${file%:*}")
done
"$importer/ansible-builder" create --file "$top/docs/examples/execution-environment.yml" --context context >/dev/null
echo "galaxy: the importer has found nothing, and an Execution Environment gets $(grep -cvE '^(#|$)' python.txt) Python packages"
