package measure

import (
	"os"
	"runtime"
	"strings"
)

// CPUModel is the processor's name, "" if it cannot be read.
func CPUModel() string {
	doc, _ := os.ReadFile("/proc/cpuinfo") // only for show
	for line := range strings.Lines(string(doc)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// LoadAverage is that of the last minute, "unknown" if it cannot be read.
func LoadAverage() string {
	doc, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(doc)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return "unknown"
}
