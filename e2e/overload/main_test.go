package overload

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/e2e/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBinary()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
