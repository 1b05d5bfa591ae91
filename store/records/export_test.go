package records

import (
	"context"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

// MarkRetiring is the first step of RetireDataKey.
func (s *Store) MarkRetiring(ctx context.Context, id string) error {
	_, err := s.markRetiring(ctx, id)
	return err
}

// Registration verifies and reads the value of a registration's row.
func (s *Store) Registration(ctx context.Context, row envelope.Row, value []byte) (*registry.Registration, error) {
	return s.registration(ctx, row, value)
}
