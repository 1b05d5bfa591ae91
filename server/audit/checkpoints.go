package audit

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// CheckpointConfig says how a log is signed.
type CheckpointConfig struct {
	// Open opens the key, which signs checkpoints and nothing else. It is
	// called again after each attempt that failed. Required.
	Open func(context.Context) (kms.Key, error)
	// EveryLines is after how many lines a checkpoint is due. Default: 1000.
	EveryLines int
	// Every is how long after the last a checkpoint is due if there were
	// lines. Default: 1 min.
	Every time.Duration
	// Timeout bounds each attempt. Default: 5 s.
	Timeout time.Duration
}

// Waits after attempts that failed: they double from one to the other.
const (
	checkpointAgain    = time.Second
	checkpointAgainMax = 30 * time.Second
)

// maxBehind is how many lines may have been written after the one that a
// checkpoint is about: readers keep the hashes of that many, and more. Had
// there been more the checkpoint is thrown away, and another made.
const maxBehind = 50_000

// RunCheckpoints signs the chain from time to time until ctx ends, and once
// more then, which takes no longer than CheckpointConfig.Timeout. It may run
// once at a time, and must have returned before Close.
//
// Nobody waits for a signature: a key that cannot sign only leaves more lines
// without a checkpoint, which is counted, and told the logger once.
func (l *Log) RunCheckpoints(ctx context.Context, cfg CheckpointConfig) error {
	if cfg.EveryLines == 0 {
		cfg.EveryLines = 1000
	}
	if cfg.Every == 0 {
		cfg.Every = time.Minute
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Open == nil || cfg.EveryLines < 0 || cfg.EveryLines > maxBehind || cfg.Every < 0 || cfg.Timeout < 0 {
		return fmt.Errorf("audit log: checkpoints need a key, a time, and 1 to %d lines between two", maxBehind)
	}
	l.writing.Lock()
	running := l.due > 0
	if !running {
		if l.due = uint64(cfg.EveryLines); l.open >= l.due {
			nudge(l.many) // for what was written before
		}
	}
	l.writing.Unlock()
	if running {
		return errors.New("audit log: it is being signed already")
	}
	defer func() {
		l.writing.Lock()
		defer l.writing.Unlock()
		l.due = 0
	}()
	c := &checkpoints{log: l, cfg: cfg}
	c.run(ctx)
	return nil
}

// checkpoints is a run of RunCheckpoints. It belongs to one goroutine.
type checkpoints struct {
	log *Log
	cfg CheckpointConfig

	key     kms.Key // nil if it is not open
	kid     string
	failing bool          // the last attempt failed, and the logger has been told
	again   time.Duration // how long to wait after the next failure
}

func (c *checkpoints) run(ctx context.Context) {
	timer := time.NewTimer(c.cfg.Every)
	defer timer.Stop()
	for {
		var asked chan struct{}
		select {
		case <-ctx.Done():
			// What was written until now is covered too, if it can be.
			c.make(context.WithoutCancel(ctx))
			return
		case <-c.log.many:
			if c.failing {
				continue // the timer is for the next attempt
			}
		case asked = <-c.log.asks:
		case <-timer.C:
		}
		c.make(ctx)
		if asked != nil {
			close(asked)
		}
		if c.failing {
			timer.Reset(c.again)
		} else {
			timer.Reset(c.cfg.Every)
		}
	}
}

// make makes a checkpoint if there are lines for one.
func (c *checkpoints) make(ctx context.Context) {
	l := c.log
	l.writing.Lock()
	end, since, open := l.end, l.since, l.open
	l.writing.Unlock()
	if open == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	jws, err := c.sign(ctx, Checkpoint{
		Chain: end.chain, Seq: end.seq, Hash: base64.RawURLEncoding.EncodeToString(end.hash[:]),
		Since: since, Time: time.Now().UTC().Truncate(time.Microsecond), Host: l.host,
	})
	if err == nil {
		err = l.writeCheckpoint(jws, end.seq, open)
	}
	if err != nil {
		c.failed(ctx, err)
		return
	}
	if c.failing {
		l.logger.InfoContext(ctx, "the audit log has checkpoints again", "path", l.path)
	}
	c.failing, c.again = false, 0
}

func (c *checkpoints) failed(ctx context.Context, err error) {
	l := c.log
	l.checkpointFailures.Add(1)
	if !c.failing {
		l.logger.WarnContext(ctx, "the audit log cannot be signed: it goes on without checkpoints until it can", "path", l.path, "error", err)
	}
	c.failing, c.key = true, nil
	c.again = min(max(2*c.again, checkpointAgain), checkpointAgainMax)
}

// sign signs a checkpoint, and verifies the signature.
func (c *checkpoints) sign(ctx context.Context, cp Checkpoint) (string, error) {
	if c.key == nil {
		key, err := c.cfg.Open(ctx)
		if err != nil {
			return "", err
		}
		if c.kid, err = signer.Thumbprint(key.Public()); err != nil {
			return "", err
		}
		c.key = key
	}
	input, err := cp.signingInput(c.key.Algorithm(), c.kid)
	if err != nil {
		return "", err
	}
	signature, err := c.key.Sign(ctx, []byte(input))
	if err != nil {
		return "", err
	}
	if err := kms.Verify(c.key.Algorithm(), c.key.Public(), []byte(input), signature); err != nil {
		if d, ok := c.key.(kms.Distruster); ok {
			d.Distrust()
		}
		return "", fmt.Errorf("%w: the %w with the key's own public half", kms.ErrKeyMismatch, err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// writeCheckpoint writes a line with a checkpoint for the line with the number
// seq, which covers so many lines that none covered before.
func (l *Log) writeCheckpoint(jws string, seq, covers uint64) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.end.seq-seq > maxBehind {
		return fmt.Errorf("%d lines were written while it was signed, and readers look back over %d: the key is too slow", l.end.seq-seq, maxBehind)
	}
	if err := l.write(appendCheckpoint(nil, time.Now(), jws)); err != nil {
		return err
	}
	l.open -= covers + 1 // it needs none for itself
	l.checkpoints.Add(1)
	l.lastCheckpoint.Store(time.Now().UnixMicro())
	return nil
}

func (l *Log) lastCheckpointTime() time.Time {
	if at := l.lastCheckpoint.Load(); at != 0 {
		return time.UnixMicro(at)
	}
	return time.Time{}
}

// settle waits a moment for a checkpoint over what was written, if there are
// checkpoints.
func (l *Log) settle(ctx context.Context) {
	l.writing.Lock()
	settled := l.due == 0 || l.open == 0
	l.writing.Unlock()
	if settled {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	done := make(chan struct{})
	select {
	case l.asks <- done:
	case <-ctx.Done():
		return
	case <-l.stop:
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	case <-l.stop:
	}
}
