#!/usr/bin/env bash
# Looks for known vulnerabilities in what the service is built from: govulncheck,
# which reports those that the code can reach. Its database is on the Internet;
# where it cannot be had this says so and succeeds, unless VULN=required. VULNDB
# names another one, as an https or file URL.
#
# usage: vuln.sh GOVULNCHECK
set -euo pipefail
cd "$(dirname "$0")/.."

check=${1:?usage: vuln.sh GOVULNCHECK}
database=()
if [ -n "${VULNDB:-}" ]; then database=(-db "$VULNDB"); fi
out=$(mktemp)
trap 'rm -f "$out"' EXIT

unreachable() { # unreachable WHY
	if [ "${VULN:-}" = required ]; then
		echo "vuln: the vulnerability database cannot be had: $1" >&2
		exit 1
	fi
	echo "vuln: SKIPPED, the vulnerability database cannot be had: $1"
	exit 0
}

# First a look that costs a second, to learn whether the database answers: the
# whole work would end in nothing after a minute.
status=0
timeout 10 "$check" "${database[@]}" -mode=binary "$check" >"$out" 2>&1 || status=$?
case $status in
0 | 3) ;; # 3: this found something, in the tool itself
124) unreachable "no answer within 10 s" ;;
*)
	if grep -q 'fetching vulnerabilities' "$out"; then
		unreachable "$(sed -n 's/.*fetching vulnerabilities: //p' "$out")"
	fi
	cat "$out" >&2
	exit 1
	;;
esac

"$check" "${database[@]}" ./...
