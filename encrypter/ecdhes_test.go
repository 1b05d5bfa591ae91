package encrypter

import (
	"errors"
	"testing"
)

// keptSecret is a party whose shared secrets the test can still see.
type keptSecret struct {
	party
	secret []byte
}

func (k *keptSecret) agree(w *workspace) ([]byte, error) {
	var err error
	k.secret, err = k.party.agree(w)
	return k.secret, err
}

// zeroSecret is a party that every agreement with gives zero.
type zeroSecret struct{}

func (zeroSecret) agree(w *workspace) ([]byte, error) {
	w.header = append(w.header, `,"epk":{}`...)
	return make([]byte, 32), nil
}

func TestSharedSecretIsForgotten(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range combinations(t, oneOfEach...) {
		if c.alg != ECDHES || c.enc != A128GCM {
			continue
		}
		kept := &keptSecret{party: must(newParty(public(c.private)))}
		a := &agreement{kept, kdfOtherInfo("A128GCM", nil, nil, 16)}
		w := &workspace{entropy: systemEntropy{}}
		derived := make([]byte, 16)
		if err := a.derive(derived, w); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		if allZero(derived) || len(kept.secret) == 0 {
			t.Fatalf("%s: nothing was agreed upon", c)
		}
		if !allZero(kept.secret) {
			t.Errorf("%s: the shared secret is still in memory", c)
		}
		w.release()
		if !allZero(w.shared[:]) || !allZero(w.private[:]) || !allZero(w.random[:]) || !allZero(w.kek[:]) {
			t.Errorf("%s: a released workspace holds key material", c)
		}
		seen[c.size] = true
	}
	if len(seen) != 3 {
		t.Errorf("tried %v, want a curve of each kind", seen)
	}
}

func TestZeroSecretIsRefusedAndLeavesTheHeader(t *testing.T) {
	w := &workspace{entropy: systemEntropy{}, header: []byte("{")}
	err := (&agreement{party: zeroSecret{}}).derive(make([]byte, 16), w)
	if !errors.Is(err, ErrKeyUnsuitable) || string(w.header) != "{" {
		t.Errorf("derive = %v, header %s, want ErrKeyUnsuitable and {", err, w.header)
	}
}
