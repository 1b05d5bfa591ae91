package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/records"
)

func registryExportCommand(file *string) *cobra.Command {
	var path string
	var force bool
	cmd := &cobra.Command{
		Use:   "export --config FILE",
		Short: "Write all that is stored as lines of JSON",
		Long: `Write all that is stored as lines of JSON: clients, the key sets that were fetched
for them, signing key rings and data keys.

Secrets stand in it as they do in the store: sealed under data keys, which the
wrapping key wraps. So nobody reads them without the HSM or KMS that has it; but
who the clients are can be seen, and the file has mode 0600. Every record is
authenticated first, for which the wrapping key must be there.

What is written meanwhile may be in the export or not. To move to another store,
stop the service first, every replica of it, so that nothing is left behind.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(*file)
			if err != nil {
				return err
			}
			out, err := newExportOutput(cmd, path, force)
			if err != nil {
				return err
			}
			var counts records.Counts
			err = withStoreOf(cmd, cfg, storeUse{existing: true}, func(ctx context.Context, s *storeAlone) (err error) {
				counts, err = s.Export(ctx, out)
				return err
			})
			if err := out.end(err); err != nil {
				return err
			}
			text := "Exported " + describeCounts(counts)
			if counts.LeftOut > 0 {
				text += fmt.Sprintf("; left out %s that nothing uses as found: the lines above name them", plural(counts.LeftOut, "row"))
			}
			_, err = fmt.Fprintln(cmd.ErrOrStderr(), text)
			return err
		},
	}
	cmd.Flags().StringVarP(&path, "file", "f", "-", `new file to write, or "-" for the standard output`)
	cmd.Flags().BoolVar(&force, "force", false, "write over a file that is there")
	return cmd
}

// exportOutput is where an export goes. A file is written beside its place and
// put there when it is whole, so that nobody takes half an export for one.
type exportOutput struct {
	io.Writer

	path  string   // empty: standard output
	file  *os.File // beside path
	force bool
	link  func(from, to string) error // os.Link
}

func newExportOutput(cmd *cobra.Command, path string, force bool) (*exportOutput, error) {
	if path == "-" || path == "" {
		return &exportOutput{Writer: cmd.OutOrStdout()}, nil
	}
	switch info, err := os.Lstat(path); {
	case err == nil && !force:
		return nil, existsAlready(path)
	case err == nil && !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file: name another", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return nil, err
	}
	return &exportOutput{Writer: f, path: path, file: f, force: force, link: os.Link}, nil
}

func existsAlready(path string) error {
	return fmt.Errorf("%s exists already: name a new file, or write over it with --force", path)
}

// end puts the file into its place, unless the export failed with err.
func (o *exportOutput) end(err error) error {
	if o.file == nil {
		return err
	}
	if err == nil {
		err = o.file.Sync()
	}
	err = errors.Join(err, o.file.Close())
	if err == nil {
		err = o.place()
	}
	if left := os.Remove(o.file.Name()); !errors.Is(left, fs.ErrNotExist) {
		err = errors.Join(err, left)
	}
	return err
}

// place gives the whole file its name, durably.
func (o *exportOutput) place() error {
	name := o.rename
	if !o.force {
		name = o.nameNew
	}
	if err := name(); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(o.path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// nameNew gives the file its name unless something has it, which may have come
// since it was looked for.
func (o *exportOutput) nameNew() error {
	err := o.link(o.file.Name(), o.path)
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		return existsAlready(o.path)
	}
	// Not every file system has links. An empty file holds the name there, until
	// the whole one takes its place.
	hold, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return existsAlready(o.path)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(hold.Close(), o.rename()); err != nil {
		return errors.Join(err, os.Remove(o.path))
	}
	return nil
}

func (o *exportOutput) rename() error { return os.Rename(o.file.Name(), o.path) }
