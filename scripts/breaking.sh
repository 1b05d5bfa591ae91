#!/usr/bin/env bash
# Fails if the API breaks callers of the version before: of REF if it is given,
# else of the last release, else of the commit before this one.
set -euo pipefail
cd "$(dirname "$0")/.."

ref=${REF:-$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)}
ref=${ref:-$(git rev-parse --verify --quiet HEAD~1 || true)}
if [ -z "$ref" ] || ! git cat-file -e "$ref:buf.yaml" 2>/dev/null; then
	echo "breaking: there is no earlier version of the API here to compare with"
	exit 0
fi
# A copy, not git itself: buf does not read work trees that share a repository.
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$ref" buf.yaml proto | tar -x -C "$before"
buf breaking --against "$before"
