//go:build race

package harness

// RaceEnabled says whether the test, and so the binary it builds, has the race
// detector.
const RaceEnabled = true
