#!/usr/bin/env bash
# Fails if the generated code of the API is not what the .proto files say.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
buf generate --output "$fresh"
for file in "$fresh"/proto/bulla/v1/*.pb.go; do
	name=proto/bulla/v1/$(basename "$file")
	cmp -s "$file" "$name" || { echo "$name is out of date: run make generate" >&2; exit 1; }
done
