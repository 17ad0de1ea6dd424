#!/usr/bin/env bash
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the artefact of version $1 and its release notes into .build/release/. Refuses where galaxy.yml or the changelog
# say something else, or where a fragment of the changelog would be left out.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
release=$top/.build/release
version=$1
# antsibull-changelog escapes the dots.
heading="## v${version//./\\.}"
cd "$top"

refuse() {
    printf 'release: %s\n' "$*" >&2
    exit 1
}

[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || refuse "'$version' is no semantic version, such as 1.2.3"
grep -qx "version: $version" galaxy.yml || refuse "galaxy.yml says $(grep '^version:' galaxy.yml), not $version"
grep -qxF "$heading" CHANGELOG.md || refuse "CHANGELOG.md has no v$version: antsibull-changelog release"
fragments=$(git ls-files changelogs/fragments)
[ -z "$fragments" ] || refuse "not in CHANGELOG.md: ${fragments//$'\n'/ }"
antsibull-changelog lint
antsibull-changelog lint-changelog-yaml changelogs/changelog.yaml

rm -rf "$release"
bash tests/copy.sh "$release/source"
ansible-galaxy collection build --output-path "$release" "$release/source"
rm -rf "$release/source"
heading=$heading awk '$0 == ENVIRON["heading"] {on = 1; next} /^## v|^<a id="v[0-9-]*">/ {on = 0} on' \
    CHANGELOG.md >"$release/notes.md"
[ -s "$release/notes.md" ] || refuse "CHANGELOG.md says nothing of v$version"
