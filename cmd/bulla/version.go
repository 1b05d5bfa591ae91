package main

import (
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/internal/sbom"
)

// release is the version that this source is, or becomes: with "-dev" it is on
// its way there. It stands here and not in a tag, so that the same source is the
// same version however it is built. CHANGELOG.md has the same.
const release = "0.1.0-dev"

// revision is the commit, where deploy/build.sh was told one, with modified at
// the end if the source is not quite that. Only the linker sets it.
var revision string

const modified = "-dirty" // as git describe has it

// build is what is known of this binary.
type build struct {
	Version   string `json:"version"`
	Revision  string `json:"revision,omitempty"`
	Modified  bool   `json:"modified,omitempty"` // the source was not that of Revision
	GoVersion string `json:"go_version"`
	Platform  string `json:"platform"`

	info *debug.BuildInfo // nil if the toolchain left it out
}

func thisBuild() build {
	b := build{Version: release, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	b.Revision, b.Modified = strings.CutSuffix(revision, modified)
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.info = info
	if revision == "" { // a plain "go build" has noted what git says
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Revision = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}

// version names this binary in a word: the release, and the commit as build
// metadata of Semantic Versioning 2.0.0, section 10.
func version() string {
	b := thisBuild()
	if b.Revision == "" {
		return b.Version
	}
	word := b.Version + "+" + b.Revision[:min(12, len(b.Revision))]
	if b.Modified {
		word += ".dirty"
	}
	return word
}

func versionCommand() *cobra.Command {
	var output string
	var bill bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which version this is, and what is in it",
		Long: `Say which version this is, of which commit, and what it was built with.

With --sbom: the modules that this very binary was built from, as a bill of
materials in CycloneDX 1.6 (JSON). It does not name the C library, nor a PKCS#11
module, for both are loaded when it runs.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			switch {
			case bill:
				return b.writeSBOM(cmd.OutOrStdout())
			case output == "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(b)
			}
			return table(cmd.OutOrStdout(), func(w io.Writer) {
				field(w, "version", b.Version)
				if b.Modified {
					field(w, "revision", b.Revision+", and changes")
				} else {
					field(w, "revision", b.Revision)
				}
				field(w, "go", b.GoVersion)
				field(w, "platform", b.Platform)
			})
		},
	}
	cmd.Flags().BoolVar(&bill, "sbom", false, "print the software bill of materials")
	outputFlag(cmd, &output)
	cmd.MarkFlagsMutuallyExclusive("sbom", "output")
	return cmd
}

func (b build) writeSBOM(w io.Writer) error {
	if b.info == nil {
		return errors.New("this binary does not know its modules: build it with deploy/build.sh")
	}
	return sbom.Write(w, sbom.Binary{Info: b.info, Version: b.Version, Revision: b.Revision, License: "Apache-2.0"})
}
