package awskms

// SetLookupRate replaces the rate of FindKeys, so that tests with many keys need
// not wait; 0 is no limit.
func (b *Backend) SetLookupRate(perSecond int) { b.lookups = newLimiter(perSecond) }
