#!/bin/sh
# Installs the two AWS KMS emulators that the tests of kms/awskms run against,
# each in a Python virtual environment of its own below .cache/. Does nothing
# for one that is there already. Usage: scripts/kms-endpoints.sh [moto|ministack]...
#
# BULLA_MOTO_VENV and BULLA_MINISTACK_VENV name other folders to use.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}

say() { echo "kms-endpoints: $*" >&2; }

# install NAME FOLDER REQUIREMENT...
install() {
	name=$1 venv=$2
	shift 2
	mkdir -p "$(dirname -- "$venv")"

	# Tests of several packages may ask at the same time: one installs, the
	# others wait.
	exec 9>"$venv.lock"
	flock 9

	# Written last, with what was asked for: an installation that was cut
	# short, or is of other versions, is made anew.
	stamp=$venv/installed
	if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$*" ]; then
		return
	fi
	say "installing $* from PyPI into $venv"
	if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
		say "$python cannot make virtual environments; run: apt-get install python3-venv"
		exit 1
	fi
	rm -rf -- "$venv"
	"$python" -m venv "$venv"
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
	echo "$*" >"$stamp"
	say "$name is installed"
}

[ $# -gt 0 ] || set -- moto ministack
for emulator; do
	case $emulator in
	moto)
		install moto "${BULLA_MOTO_VENV:-$root/.cache/moto}" "moto[server]==5.2.5"
		;;
	ministack)
		# Without cryptography, ministack starts and cannot sign.
		install ministack "${BULLA_MINISTACK_VENV:-$root/.cache/ministack}" "ministack==1.5.33" "cryptography==46.0.3"
		;;
	*)
		say "unknown emulator \"$emulator\": use moto or ministack"
		exit 2
		;;
	esac
done
