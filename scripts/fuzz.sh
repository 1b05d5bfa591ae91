#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each.
#
# The corpus is kept in .cache/fuzz: the next run goes on where this one ended. An
# input that failed is written to the package's testdata/fuzz; commit it with the
# mend.
#
# A worker that is in the middle of an input when the time is over sometimes ends
# with "context deadline exceeded" and no input that failed. That is the end of
# the time and not a finding; a finding names its input and fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-10s}
for dir in $(git ls-files '*_test.go' | xargs grep -lE '^func Fuzz' | xargs -n1 dirname | sort -u); do
	for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/^func //' | sort -u); do
		echo "fuzzing $dir $target for $time"
		log=$(mktemp)
		corpus=$PWD/.cache/fuzz/$dir
		mkdir -p "$corpus"
		if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 50x "./$dir" -args -test.fuzzcachedir="$corpus" 2>&1 | tee "$log"; then
			if grep -q 'Failing input' "$log" || ! grep -qx ' *context deadline exceeded' "$log"; then
				exit 1
			fi
			echo "the time was over in the middle of an input; no input failed"
		fi
		rm -f "$log"
	done
done
