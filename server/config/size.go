package config

import (
	"math"
	"strconv"
	"strings"
)

// Size is an amount of memory in bytes.
type Size int64

// sizeUnits are the units that a size may have, the largest first.
var sizeUnits = []struct {
	name string
	size Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

const sizeAdvice = "write a whole number with its unit: 64MiB or 1GiB"

// String is the size as the file could have it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s >= u.size && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + " bytes"
}

// parseSize reads decimal digits and a unit, with nothing between and around
// them. The units of powers of ten are not taken: "MB" means the one to some
// and the other to others.
func parseSize(text string) (Size, bool) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || strings.Trim(digits, "0123456789") != "" || n > int64(math.MaxInt64/u.size) {
			return 0, false
		}
		return Size(n) * u.size, true
	}
	return 0, false
}
