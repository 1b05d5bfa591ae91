package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/config"
)

// neighbor is the service that runs already, if one does.
type neighbor struct {
	address string // of its listener for operators; empty if there is none
	trouble string // why it is not ready; empty if it is
	lacks   string // what does not work although it is ready; empty if all does
}

func (n neighbor) running() bool { return n.address != "" }

// findService asks the operators' listener whether a Bulla is behind it. The
// others would need a client certificate to be asked.
func findService(ctx context.Context, ops config.Ops) neighbor {
	address, ok := reachable(ops.Listen)
	if !ok {
		return neighbor{}
	}
	const patience = 2 * time.Second
	caller := &http.Client{
		Timeout:       patience,
		Transport:     &http.Transport{DisableKeepAlives: true}, // and no proxy
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if code, body, err := ask(ctx, caller, address, "/livez"); err != nil || code != http.StatusOK || body != "ok\n" {
		return neighbor{}
	}
	// Others say "ok", too. It may have been started before its metrics were given
	// an address of their own.
	measured := func(address string) bool {
		_, body, err := ask(ctx, caller, address, "/metrics")
		return err == nil && strings.Contains(body, "\nbulla_")
	}
	if apart, ok := reachable(ops.MetricsListen); !measured(address) && (!ok || !measured(apart)) {
		return neighbor{}
	}
	n := neighbor{address: address}
	switch code, body, err := ask(ctx, caller, address, "/readyz"); {
	case err != nil:
		n.trouble = err.Error()
	case code != http.StatusOK:
		n.trouble = strings.TrimSpace(body)
	case body != "ok\n":
		n.lacks = strings.TrimSpace(body)
	}
	return n
}

// reachable is where this machine finds what listens on an address.
func reachable(listen string) (address string, ok bool) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || port == "0" {
		return "", false
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), true
}

// ask makes a GET, and returns no more of the answer than fits in memory.
func ask(ctx context.Context, caller *http.Client, address, path string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := caller.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close() //nolint:errcheck // read as far as wanted
	const most = 1 << 20
	data, err := io.ReadAll(io.LimitReader(res.Body, most))
	return res.StatusCode, string(data), err
}

// listeners looks whether the addresses can be listened on, and what to make
// of it if not.
func (d *doctor) listeners(ctx context.Context) []finding {
	var found []finding
	for _, l := range doorsOf(d.cfg) {
		found = append(found, d.listener(ctx, l.field, l.address))
	}
	if !d.service.running() {
		return found
	}
	f := finding{Check: "running", Subject: d.service.address, Outcome: good, Detail: "a service is running here, and is ready"}
	if d.service.lacks != "" {
		f.Outcome, f.Detail = warned, "a service is running here, and says: "+clip(d.service.lacks)
		f.Advice = "mend what is marked FAIL; the service goes on by itself when it can"
	}
	if d.service.trouble != "" {
		f.Outcome, f.Detail = warned, "a service is running here, but is not ready: "+clip(d.service.trouble)
		f.Advice = "mend what is marked FAIL; if nothing is, see the service's log, and restart it if it refuses to send a PIN again"
	}
	return append(found, f)
}

func (d *doctor) listener(ctx context.Context, field, address string) finding {
	f := finding{Check: "listener", Subject: field + " " + address, Outcome: good, Detail: "free"}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		_ = lis.Close() // nothing was accepted
	case errors.Is(err, syscall.EADDRINUSE) && d.service.running():
		f.Detail = "in use by the running service"
	case errors.Is(err, syscall.EADDRINUSE):
		f.Outcome, f.Detail = failed, "in use by something else: no service answers on ops.listen"
		f.Advice = "choose another address, or stop what listens there (ss -ltnp shows it)"
	case errors.Is(err, fs.ErrPermission):
		f.Outcome, f.Detail = failed, "this user may not listen there"
		f.Advice = "choose a port above 1023, or give the service the capability CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		f.Outcome, f.Detail = failed, "no interface of this machine has this address"
		f.Advice = "choose another address, or :PORT for all of them"
	default:
		f.Outcome, f.Detail, f.Advice = failed, err.Error(), "choose another address"
	}
	return f
}

// audit opens the audit log for a moment, and writes nothing to it.
func (d *doctor) audit(ctx context.Context) []finding {
	path := d.cfg.Audit.Path
	f := finding{Check: "audit", Subject: path, Outcome: good}
	if path == audit.Stdout {
		f.Subject, f.Detail = "audit.path", "the standard output"
		return []finding{f}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.Detail = "not there yet; the service makes it when it starts"
		return []finding{f}
	}
	if err == nil {
		var log *audit.Log
		if log, err = audit.Open(ctx, auditConfig(d.cfg, nil)); err == nil {
			err = log.Close()
		}
	}
	switch {
	case errors.Is(err, audit.ErrInUse):
		return []finding{d.inUse(f)}
	case err != nil:
		f.Outcome, f.Detail, f.Advice = failed, err.Error(), "let this user write the file, or name another in audit.path"
	case info.Mode().Perm()&0o027 != 0:
		f.Outcome, f.Detail = warned, fmt.Sprintf("can be written, but everybody can read it or its group can write it (mode %04o)", info.Mode().Perm())
		f.Advice = "run chmod 600 or 640 on it"
	default:
		f.Detail = "can be written"
	}
	return []finding{f}
}

// inUse is for a file that another process has locked.
func (d *doctor) inUse(f finding) finding {
	if d.service.running() {
		f.Detail = "in use by the running service"
		return f
	}
	f.Outcome, f.Detail = warned, "in use by another process, and no service answers on ops.listen"
	f.Advice = "if that is the service, which starts or listens elsewhere, all is well; else stop it, or give this service a file of its own"
	return f
}

// clip bounds what another process says of itself.
func clip(s string) string {
	const most = 500
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
