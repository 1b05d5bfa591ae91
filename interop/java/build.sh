#!/usr/bin/env bash
# Builds the Nimbus client of package interop into .cache/interop/java: downloads
# the jars of jars.sha256 from Maven Central, checks them and compiles Open.java.
# Does nothing if that has been done. MAVEN_CENTRAL names a mirror to use.
#
# Nimbus JOSE + JWT brings along what else it needs; Tink is for X25519 and
# Ed25519, in the version that its pom.xml names.
set -euo pipefail
cd "$(dirname "$0")"

central=${MAVEN_CENTRAL:-https://repo.maven.apache.org/maven2}
to=../../.cache/interop/java
mkdir -p "$to"

# Written last, with what was built: a build that was cut short, or is of other
# sources, is made anew.
stamp=$to/built
built=$(sha256sum jars.sha256 Open.java build.sh)
[ "$(cat "$stamp" 2>/dev/null)" != "$built" ] || exit 0

rm -rf "$to/lib" "$to/classes" "$stamp"
mkdir -p "$to/lib" "$to/classes"
while read -r sum path; do
	jar=$to/lib/$(basename "$path")
	echo "downloading $(basename "$path") from Maven Central"
	curl --fail --silent --show-error --location --retry 3 --output "$jar" "$central/$path"
	if ! echo "$sum  $jar" | sha256sum --check --status; then
		rm -f "$jar"
		echo "$central/$path is not the file that interop/java/jars.sha256 names; do not use it" >&2
		exit 1
	fi
done <jars.sha256
javac -Xlint:all,-serial -cp "$to/lib/*" -d "$to/classes" Open.java
echo "$built" >"$stamp"
