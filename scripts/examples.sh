#!/usr/bin/env bash
# Installs what the programs in examples/ need: the Python packages into a virtual
# environment below .cache/, the npm packages into examples/node. Does nothing if
# that has been done.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/examples/venv
# Written last, with what was asked for: an installation that was cut short, or is
# of other versions, is made anew.
stamp=$venv/installed
if ! cmp --silent examples/python/requirements.txt "$stamp"; then
	echo "installing the Python packages of examples/python into $venv"
	rm -rf "$venv"
	mkdir -p "$(dirname "$venv")"
	/usr/bin/python3 -m venv "$venv"
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r examples/python/requirements.txt
	cp examples/python/requirements.txt "$stamp"
fi

# What npm writes last.
installed=examples/node/node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ examples/node/package-lock.json -nt "$installed" ]; then
	echo "installing the npm packages of examples/node"
	npm ci --prefix examples/node --no-audit --no-fund --ignore-scripts
	touch "$installed"
fi
