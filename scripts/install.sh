#!/usr/bin/env bash
# Installs what a target needs and says what it installs. As root, or in CI, it
# installs Debian packages; otherwise it prints the one command to run and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: install.sh demo|test|interop|bench|bench-scale|soak}
is() { # is TARGET…: whether the target is one of these
	local t
	for t in "$@"; do [ "$target" = "$t" ] && return 0; done
	return 1
}

command -v go >/dev/null || { echo "install Go 1.26 or newer first: https://go.dev/doc/install" >&2; exit 1; }

packages=()
need() { # need PACKAGE, unless the rest of the line succeeds
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || packages+=("$package")
}
library() { # library NAME: whether a shared library is where distributions put them
	compgen -G "/usr/lib/*/$1" || compgen -G "/usr/lib/$1" || compgen -G "/usr/lib64/$1" || compgen -G "/usr/lib64/*/$1"
}
softhsm() {
	local path
	for path in /usr/lib/softhsm /usr/lib/*/softhsm /usr/lib64 /usr/lib64/softhsm /usr/lib64/pkcs11; do
		[ -e "$path/libsofthsm2.so" ] && return 0
	done
	return 1
}

postgresql() { # the server: distributions leave it out of PATH
	command -v initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' || compgen -G '/usr/pgsql-*/bin/initdb'
}
pgbouncer() { # as above
	command -v /usr/sbin/pgbouncer || type -P pgbouncer
}

erlang() { # erlang APPLICATION: whether Erlang is there and has it
	command -v escript && erl -noshell -eval "halt(case code:lib_dir($1) of {error, _} -> 1; _ -> 0 end)."
}

need gcc command -v gcc
need libc6-dev test -e /usr/include/stdlib.h
need softhsm2 softhsm
need softhsm2 command -v softhsm2-util
need opensc command -v pkcs11-tool
if ! is demo; then
	need curl command -v curl
	need nodejs command -v node
	need npm command -v npm
	need python3 test -x /usr/bin/python3
	need python3-venv /usr/bin/python3 -c 'import ensurepip'
	need python3-jwcrypto /usr/bin/python3 -c 'import jwcrypto'
fi
if is test interop soak; then
	need default-jdk-headless command -v javac
	need erlang-jose erlang jose
	need erlang-jiffy erlang jiffy
fi
if is test soak; then # to look at TLS from outside
	need openssl command -v openssl
fi
if is test soak bench bench-scale; then # for the store of a fleet
	need postgresql postgresql
fi
if is test soak; then # and a pooler in front of it
	need pgbouncer pgbouncer
fi
if is test soak; then # what watches the service, and the tests of its alerts
	need prometheus command -v prometheus
	need prometheus command -v promtool
fi
if is test soak; then # to look at the unit
	need systemd command -v systemd-analyze
fi
if is test soak; then # a second vendor's PKCS#11 module
	need libnss3 library libsoftokn3.so
	need libnss3-tools command -v certutil
fi
if is soak; then # and a third, on a software TPM
	need libtpm2-pkcs11-1 library 'libtpm2_pkcs11.so*'
	need libtpm2-pkcs11-tools command -v tpm2_ptool
	need swtpm command -v swtpm
	need swtpm-tools command -v swtpm_setup
	need libtss2-tcti-swtpm0 library 'libtss2-tcti-swtpm.so*'
	need libtss2-tcti-tabrmd0 library 'libtss2-tcti-tabrmd.so*'
	need tpm2-abrmd test -x /usr/sbin/tpm2-abrmd
	need dbus command -v dbus-daemon
	need dbus command -v dbus-send
fi

if [ ${#packages[@]} -gt 0 ]; then
	mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
	install="apt-get install -y --no-install-recommends ${packages[*]}"
	if [ "$(id -u)" = 0 ]; then
		echo "installing Debian packages: ${packages[*]}"
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
	elif [ "${CI:-}" = true ] && command -v sudo >/dev/null; then
		echo "installing Debian packages: ${packages[*]}"
		sudo apt-get update -qq
		sudo DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
	else
		echo "this needs: ${packages[*]}" >&2
		echo "run: sudo apt-get update && sudo $install" >&2
		exit 1
	fi
fi

if is test soak; then
	scripts/kms-endpoints.sh
	scripts/examples.sh
fi
if is test interop soak; then
	if ! node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)'; then
		echo "Node.js is $(node --version); install version 18 or newer: https://nodejs.org" >&2
		exit 1
	fi
	# What npm writes last: an installation that was cut short is made anew.
	installed=interop/node/node_modules/.package-lock.json
	if [ ! -e "$installed" ] || [ interop/node/package-lock.json -nt "$installed" ]; then
		echo "installing the npm packages of interop/node"
		npm ci --prefix interop/node --no-audit --no-fund --ignore-scripts
		touch "$installed"
	fi
	interop/java/build.sh
fi
