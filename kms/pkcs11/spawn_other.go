//go:build !unix

package pkcs11

import (
	"errors"
	"net"
	"os/exec"
)

// canIsolate says that this system has not what a worker process needs.
const canIsolate = false

// errNoIsolation is the answer where there are no Unix sockets to inherit.
var errNoIsolation = errors.New("isolation in a worker process needs a Unix system")

func harden() error { return errNoIsolation }

func spawn([]string) (*exec.Cmd, net.Conn, error) { return nil, nil, errNoIsolation }
