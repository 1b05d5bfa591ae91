package keyring

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bulla-project/bulla/kms"
)

// several is more than one error on one line.
type several []error

func (s several) Error() string {
	texts := make([]string, len(s))
	for i, err := range s {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (s several) Unwrap() []error { return s }

// all is every error of errs that is not nil: nil, the one, or several.
func all(errs ...error) error {
	var list several
	for _, err := range errs {
		if err != nil {
			list = append(list, err)
		}
	}
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	default:
		return list
	}
}

// answered is err of a call that ctx bounded: a backend that does not answer
// in time is unavailable.
func answered(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("%w: no answer in time", kms.ErrUnavailable)
	}
	return err
}
