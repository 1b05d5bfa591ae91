package interop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Client is a JOSE implementation that Bulla's tokens are proven with.
type Client string

// The clients.
const (
	// Jose is npm jose, in the version of node/package.json.
	Jose Client = "npm jose"
	// NodeJose is npm node-jose, in the version of node/package.json.
	NodeJose Client = "npm node-jose"
	// NodeJoseReverted is the same on a Node.js that was told to do PKCS #1 v1.5
	// decryption again, as old relying parties are run today.
	NodeJoseReverted Client = "npm node-jose, reverted"
	// JWCrypto is Debian's python3-jwcrypto, on Debian's Python.
	JWCrypto Client = "python3-jwcrypto"
	// ErlangJose is Debian's erlang-jose.
	ErlangJose Client = "erlang-jose"
	// Nimbus is Nimbus JOSE + JWT, in the version of java/jars.sha256.
	Nimbus Client = "Nimbus JOSE + JWT"
)

// Clients lists all clients, in the order in which they are shown.
var Clients = []Client{Jose, NodeJose, NodeJoseReverted, JWCrypto, ErlangJose, Nimbus}

// Revert is the flag of Node.js that NodeJoseReverted is run with. CVE-2023-46809
// is that Node.js tells by timing whether PKCS #1 v1.5 padding was right.
const Revert = "--security-revert=CVE-2023-46809"

// install is the command that installs whatever a client needs.
const install = "scripts/install.sh test"

// command returns the program of a client, having looked for what it needs.
func command(client Client) (*exec.Cmd, error) {
	root, err := root()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, "interop")
	missing := func(what string) error {
		return fmt.Errorf("interop client %s: %s is not installed; run: %s", client, what, install)
	}
	program := func(name string) (string, error) {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", missing(name)
		}
		return path, nil
	}
	switch client {
	case Jose, NodeJose, NodeJoseReverted:
		node, err := program("node")
		if err != nil {
			return nil, err
		}
		name, flags := "node-jose", []string(nil)
		switch client {
		case Jose:
			name = "jose"
		case NodeJoseReverted:
			flags = []string{Revert}
		}
		if _, err := os.Stat(filepath.Join(dir, "node", "node_modules", name)); err != nil {
			return nil, missing("npm " + name)
		}
		return exec.Command(node, append(flags, filepath.Join(dir, "node", name+".mjs"))...), nil
	case JWCrypto:
		// Debian's jwcrypto belongs to Debian's Python, which need not be the first
		// in the path.
		const python = "/usr/bin/python3"
		if err := exec.Command(python, "-c", "import jwcrypto").Run(); err != nil {
			return nil, missing("python3-jwcrypto")
		}
		return exec.Command(python, filepath.Join(dir, "python", "open.py")), nil
	case ErlangJose:
		escript, err := program("escript")
		if err != nil {
			return nil, err
		}
		return exec.Command(escript, filepath.Join(dir, "erlang", "open.erl")), nil
	case Nimbus:
		java, err := program("java")
		if err != nil {
			return nil, err
		}
		built := filepath.Join(root, ".cache", "interop", "java")
		if _, err := os.Stat(filepath.Join(built, "classes", "Open.class")); err != nil {
			return nil, missing("Nimbus JOSE + JWT")
		}
		path := filepath.Join(built, "classes") + string(filepath.ListSeparator) + filepath.Join(built, "lib", "*")
		return exec.Command(java, "-XX:TieredStopAtLevel=1", "-cp", path, "Open"), nil
	}
	return nil, fmt.Errorf("interop client %q is unknown; choose of %q", client, Clients)
}

// root finds the module's folder: tests run in the folder of their package, which
// lies somewhere in it.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("interop: no go.mod above the working directory; run the tests inside the module")
		}
		dir = parent
	}
}
