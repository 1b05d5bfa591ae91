package pkcs11

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"
)

// Config says which token to use, and how.
type Config struct {
	// Module is the absolute path of the PKCS#11 library, for example
	// /usr/lib/softhsm/libsofthsm2.so. Required. A file that is missing does
	// not fail New: it may be installed or mounted later.
	Module string

	// Token is the label of the token, Serial its serial number. At least one
	// is required; if both are given, both must match. A token is never named
	// by its slot number, which changes from start to start.
	Token  string
	Serial string

	// PINFile is the path of a file that holds the user PIN, and nothing else
	// but an optional line end. Required. It is read at each login and not
	// held after; a file that is missing does not fail New.
	PINFile string

	// RefusalFile is the path of a file in which is kept, over the end of this
	// process, that a PIN was refused, so that a service that is started again
	// and again, or another process with the same file, does not send it a
	// second time. Its folder has to be there, and writable, for that; locks are
	// made beside it. It holds slow hashes of PINs and no PIN, and tells no more
	// than the PIN file does. "" means that it is remembered in memory only.
	RefusalFile string

	// InsistOnLogin sends the PIN even when the token reports that wrong PINs
	// were entered since the last good one (USER_PIN_COUNT_LOW,
	// USER_PIN_FINAL_TRY, USER_PIN_LOCKED). Default false: a token with such a
	// flag is left alone, because the next wrong PIN may lock it for good. The
	// flag goes when anybody logs in with the right PIN, for example
	// `pkcs11-tool --module M --token-label T --login --list-objects`.
	InsistOnLogin bool

	// Sessions is how many signatures may be in flight at once. 0 means two
	// for each core, right for software tokens; a network HSM wants more. It
	// is lowered to the token's own limit less two where the token has one.
	// Calls beyond wait for a session, 64 for each session or 1024 if that
	// is more, and any further ones fail with kms.ErrThrottled.
	Sessions int

	// InitReserved is given to C_Initialize as the text that pReserved points
	// to. The standard wants NULL there, which is what "" means; a few modules
	// take their parameters by it, NSS softokn the folder of its database:
	//
	//	configDir='sql:/var/lib/bulla/nss' certPrefix='' keyPrefix='' secmod='secmod.db' flags=readOnly
	//
	// A module is initialized once in a process, so all backends on one module
	// have the same text, or New fails.
	InitReserved string

	// RetryAfter is the time between two attempts to bring a lost or missing
	// token up, which are made whether or not it is used. 0 means 1.5 seconds.
	RetryAfter time.Duration

	// OnStuck, if set, is called when the token was given up because calls
	// hang inside the module: no session is left, or the module would have to
	// be initialized again and cannot be. Only a new process brings such calls
	// back for sure. It is called once until the token is up again, on a
	// goroutine of its own, and must not wait for Close. nil means that the
	// token stays down until the calls come out by themselves. It is not called
	// for a token that runs in a worker, which is replaced.
	OnStuck func(error)

	// Modules is the registry that backends of one process share, so that a
	// module is initialized once. nil means a registry of this backend's own,
	// right only if no other backend uses the same module.
	Modules *Modules

	// Worker is the command, with its arguments, that runs RunWorker on the
	// socket that is its file descriptor 3. With it the module is loaded into
	// that process and not into this one, so that it can neither crash nor
	// hang it; a worker that ends is replaced. Unix only. nil means that the
	// module runs in this process.
	//
	// The worker has this process's environment, working directory and
	// standard error (where the module prints, and Go its goroutines when the
	// module crashes), and nothing secret on its command line: it asks for the
	// PIN over the socket.
	Worker []string

	// Logger gets one line for each change between up and down, and for each
	// worker process that starts or ends. nil discards. No PIN and no signed
	// data is ever logged.
	Logger *slog.Logger

	pins  pinSource // nil means PINFile; a worker asks its parent
	tempo *tempo    // nil means the usual one
}

// pinSource is where logins get their PIN from.
func (c Config) pinSource() pinSource {
	if c.pins != nil {
		return c.pins
	}
	return c.pinFile()
}

// The bounds this package keeps by itself.
const (
	defaultRetry = 1500 * time.Millisecond
	parkLimit    = 2 * time.Second // for running calls to come out of the module
	startWait    = 5 * time.Second // New waits no longer for the first login
	closeWait    = 3 * time.Second // Close waits no longer for signatures
	maxSessions  = 4096
)

// check finds what only an edit of the configuration can mend, all of it at
// once.
func (c Config) check() error {
	var errs []error
	fault := func(format string, a ...any) { errs = append(errs, fmt.Errorf("pkcs11: "+format, a...)) }
	switch {
	case c.Module == "":
		fault("module is empty: give the path of the PKCS#11 library, such as /usr/lib/softhsm/libsofthsm2.so")
	case !filepath.IsAbs(c.Module):
		fault("module %q is not an absolute path: a bare name would be searched for on the library path", c.Module)
	}
	if c.Token == "" && c.Serial == "" {
		fault("no token named: give its label (token) or its serial number; `pkcs11-tool --module %s --list-token-slots` shows them", c.Module)
	}
	if len(c.Token) > 32 {
		fault("token label %q is longer than the 32 bytes that a label has", c.Token)
	}
	if len(c.Serial) > 16 {
		fault("token serial %q is longer than the 16 bytes that a serial number has", c.Serial)
	}
	if c.PINFile == "" {
		fault("no PIN file: write the user PIN into a file of its own (mode 0600) and name it in pin_file")
	}
	if c.Sessions < 0 || c.Sessions > maxSessions {
		fault("sessions is %d: use 0 for the default, or 1 to %d", c.Sessions, maxSessions)
	}
	if strings.ContainsRune(c.InitReserved, 0) {
		fault("init_reserved has a NUL byte, where a module would see its end: remove it")
	}
	if c.RetryAfter < 0 {
		fault("retry time %v is negative", c.RetryAfter)
	}
	if c.Worker != nil && (len(c.Worker) == 0 || c.Worker[0] == "") {
		fault("the command of the worker process is empty")
	}
	if c.Worker != nil && !canIsolate {
		fault("isolation in a worker process needs a Unix system: use isolation: none here")
	}
	return errors.Join(errs...)
}
