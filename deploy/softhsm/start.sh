#!/bin/sh
# Bulla to try out: the first time, this makes all that the service needs, in one
# folder; then it serves. The folder is kept in a volume, or all is new each time.
#
#   softhsm2.conf, tokens, pin   a SoftHSM token with a key that signs (login-es256)
#                                and one that wraps (wrap-1)
#   ca, server, idp, registrar   certificates (.crt) with their keys (.key)
#   bulla.yaml                   a configuration with two callers: idp issues
#                                tokens, registrar registers clients
#
# A key in SoftHSM is a file: whoever has the folder has the keys. So this is
# nothing to go live with.
#
# BULLA_HOME is the folder, /var/lib/bulla if it is not set; BULLA_LISTEN the IP
# address to listen on, 0.0.0.0 if it is not set; BULLA_NAMES more names to
# reach the service by, as in "bulla.test,bulla.example.com".
set -eu
umask 077

home=${BULLA_HOME:-/var/lib/bulla}
listen=${BULLA_LISTEN:-0.0.0.0}
export SOFTHSM2_CONF="$home/softhsm2.conf"

module() { # where distributions put the module
	for path in /usr/lib/softhsm /usr/lib/*/softhsm /usr/lib64 /usr/lib64/softhsm /usr/lib64/pkcs11; do
		[ -e "$path/libsofthsm2.so" ] && echo "$path/libsofthsm2.so" && return
	done
	echo "start.sh: SoftHSM is not installed" >&2
	return 1
}

# The PINs are handed over in the environment: a command line is seen by others.
token() {
	mkdir tokens
	printf 'directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n' "$home" > softhsm2.conf
	openssl rand -hex 16 > pin
	BULLA_PIN=$(cat pin) BULLA_SO_PIN=$(openssl rand -hex 16) # the latter is kept nowhere
	export BULLA_PIN BULLA_SO_PIN
	tool() { pkcs11-tool --module "$module" "$@" >tool.log 2>&1 || { cat tool.log >&2; return 1; }; }
	tool --slot-index 0 --init-token --label bulla --so-pin env:BULLA_SO_PIN
	tool --token-label bulla --init-pin --login --login-type so --so-pin env:BULLA_SO_PIN --new-pin env:BULLA_PIN
	tool --token-label bulla --login --pin env:BULLA_PIN --keypairgen --key-type EC:prime256v1 --label login-es256 --id 01 --usage-sign --sensitive
	tool --token-label bulla --login --pin env:BULLA_PIN --keygen --key-type AES:32 --label wrap-1 --id 02 --sensitive
	rm tool.log
	unset BULLA_PIN BULLA_SO_PIN
}

certificate() { # NAME SUBJECT-ALTERNATIVE-NAMES
	openssl req -x509 -CA ca.crt -CAkey ca.key -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj "/CN=$1" \
		-addext "basicConstraints=critical,CA:FALSE" -addext "subjectAltName=$2" -keyout "$1.key" -out "$1.crt" 2>/dev/null
}

certificates() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj "/CN=Bulla to try out" \
		-keyout ca.key -out ca.crt 2>/dev/null
	names="DNS:localhost,DNS:$(hostname),IP:127.0.0.1"
	[ "$listen" = 0.0.0.0 ] || names="$names,IP:$listen"
	for name in $(echo "${BULLA_NAMES:-}" | tr , ' '); do names="$names,DNS:$name"; done
	certificate server "$names"
	certificate idp URI:spiffe://example.com/idp
	certificate registrar URI:spiffe://example.com/registrar
}

configuration() {
	cat <<END
grpc: {listen: "$listen:8443", tls: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt}}
http: {listen: "$listen:8444", tls: {cert_file: server.crt, key_file: server.key}}
ops: {listen: "$listen:9090"}
store: {bolt: {path: bulla.db}}
audit: {path: audit.log}
backends:
  hsm: {pkcs11: {module: $module, token: bulla, pin_file: pin}}
wrapping: {backend: hsm, key: "object=wrap-1"}
grants:
  - {caller: "spiffe://example.com/idp", allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: ["*"]}
  - {caller: "spiffe://example.com/idp", allow: [read_signing_keys], issuers: [main]}
  - {caller: "spiffe://example.com/registrar", allow: [create_client_key, read_client_keys], issuers: [main], clients: ["*"]}
issuers:
  - name: main
    iss: https://login.example.com
    signing_keys:
      - {algorithm: ES256, keys: ["hsm:object=login-es256"]}
END
}

cd "$home"
# The configuration is written last: without it, an earlier start was cut short,
# and nothing that it left was ever in use.
if [ ! -e bulla.yaml ]; then
	if [ -e bulla.db ]; then
		echo "start.sh: $home has a bulla.db and no bulla.yaml: put the latter back, or use an empty folder" >&2
		exit 1
	fi
	echo "start.sh: making a token, certificates and a configuration in $home" >&2
	module=$(module)
	rm -rf tokens
	token
	certificates
	configuration > bulla.yaml.new
	mv bulla.yaml.new bulla.yaml
fi

if [ $# -gt 0 ]; then
	exec bulla "$@"
fi
exec bulla serve --config "$home/bulla.yaml"
