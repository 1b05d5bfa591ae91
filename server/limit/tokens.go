package limit

import (
	"sync"
	"time"
)

// rules say how many tokens callers may ask for.
type rules struct {
	all rule
	own map[string]rule // of callers with limits of their own
}

// rule is for one caller; zero is no limit.
type rule struct {
	perSecond float64
	inFlight  int
}

func (cfg *Config) rules() *rules {
	r := &rules{all: rule{cfg.Tokens, cfg.InFlight}, own: make(map[string]rule)}
	for name, c := range cfg.Callers {
		one := r.all
		if c.Tokens != nil {
			one.perSecond = *c.Tokens
		}
		if c.InFlight != nil {
			one.inFlight = *c.InFlight
		}
		if one != r.all {
			r.own[name] = one
		}
	}
	return r
}

func (r *rules) of(caller string) rule {
	if own, ok := r.own[caller]; ok {
		return own
	}
	return r.all
}

func (r *rules) rates() map[string]float64 {
	rates := make(map[string]float64)
	for name, one := range r.own {
		rates[name] = one.perSecond
	}
	return rates
}

// tokens are those of one caller that are under way.
type tokens struct {
	mu   *sync.Mutex // that of Limits
	n    int         // guarded by mu
	done func()      // made once
}

func (t *tokens) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
}

func nothing() {}

// Token counts a token that a caller asks for, until done is called. Its error is
// an *ExceededError.
func (l *Limits) Token(caller string) (done func(), err error) {
	if l.rules.Load().of(caller) == (rule{}) {
		return nothing, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rule := l.rules.Load().of(caller)
	t := l.underWay[caller]
	if t == nil {
		t = &tokens{mu: &l.mu}
		t.done = t.end
		l.underWay[caller] = t
	}
	if rule.inFlight > 0 && t.n >= rule.inFlight {
		return nil, l.exceed(tokensInFlight, leastPause)
	}
	if rule.perSecond > 0 {
		now := time.Now()
		if wait := l.tokens.wait(caller, now); wait > 0 {
			return nil, l.exceed(tokenRate, wait)
		}
		l.tokens.take(caller, now)
	}
	t.n++
	return t.done, nil
}
