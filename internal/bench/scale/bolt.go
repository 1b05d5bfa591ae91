//go:build linux

package main

import (
	"context"
	"path/filepath"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/store/bolt"
)

// newBolt is a store in a file of the folder dir.
func (b *bench) newBolt(name string) (*place, error) {
	path := filepath.Join(b.dir, name+".db")
	return &place{
		engine: "bolt",
		config: harness.M{"bolt": harness.M{"path": path}},
		open: func(ctx context.Context) (store, error) {
			return bolt.Open(ctx, bolt.Config{Path: path, DataKeys: dataKeys(b.local)})
		},
	}, nil
}
