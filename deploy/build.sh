#!/bin/sh
# Builds the binary, in the image as everywhere else: deploy/build.sh [FILE].
# The same source, Go and C compiler give the same bytes, wherever the source
# lies: no path, time or user gets in, and nothing is asked of git. Who wants
# the commit to be told by "bulla version" says it in REVISION.
set -eu

case ${1:-} in
/*) out=$1 ;;
*) out=$PWD/${1:-bin/bulla} ;;
esac
cd "$(dirname "$0")/.."

case ${REVISION:=} in
*[!0-9a-zA-Z.-]*) echo "build.sh: REVISION is \"$REVISION\": give a commit" >&2; exit 2 ;;
esac

# PKCS#11 modules are C libraries, so cgo is needed, and with it a C compiler
# and glibc. What would change the bytes is not taken from outside.
unset GOFLAGS GOEXPERIMENT CGO_CFLAGS CGO_CPPFLAGS CGO_CXXFLAGS CGO_LDFLAGS
export CGO_ENABLED=1

# -s leaves out symbols and debugging data; stack traces need neither.
exec "${GO:-go}" build -mod=readonly -trimpath -buildvcs=false \
	-ldflags "-s -X main.revision=$REVISION" -o "$out" ./cmd/bulla
