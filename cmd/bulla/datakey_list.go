package main

import (
	"context"
	"errors"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/server/config"
)

// frozen is the data keys of a store as they were read. Those who look at it
// change nothing, whatever becomes of datakey.Keys.
type frozen struct{ records []datakey.Record }

var errFrozen = errors.New("nothing is written while the data keys are only looked at")

// DataKeys implements datakey.Store.
func (f frozen) DataKeys(context.Context) ([]datakey.Record, error) { return f.records, nil }

// AddDataKey implements datakey.Store.
func (frozen) AddDataKey(context.Context, datakey.Record) error { return errFrozen }

// RetireDataKey implements datakey.Store.
func (frozen) RetireDataKey(context.Context, string) error { return errFrozen }

// listDataKeys unwraps data keys, by wrapping keys that open returns, and makes
// none.
func listDataKeys(ctx context.Context, cfg *config.Config, records []datakey.Record, open func(context.Context, string) (kms.Wrapper, error)) ([]datakey.Info, error) {
	if len(records) == 0 {
		return nil, nil
	}
	c := dataKeysConfig(cfg, newWrappingKeys(cfg), nil)
	c.Store, c.Open = frozen{records}, open
	keys, err := datakey.New(ctx, c)
	if err != nil {
		return nil, err
	}
	return keys.List(ctx)
}
