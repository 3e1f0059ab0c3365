package logstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FS is the one directory that a shared log lives in. Simulations bring their own, which loses what was not synced.
type FS interface {
	// Open opens a file for reading and writing and makes it if it is not there.
	Open(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	List() ([]string, error)
	// Sync makes creations, renames and removals durable.
	Sync() error
}

// File is an open file.
type File interface {
	ReadAt(b []byte, off int64) (int, error)
	WriteAt(b []byte, off int64) (int, error)
	Size() (int64, error)
	// Sync makes what was written durable, and as much of the file's metadata as reading it needs.
	Sync() error
	Close() error
}

// osFS is a real directory.
type osFS struct{ dir string }

// OpenFS makes the directory, durably, if it is not there.
func OpenFS(dir string) (FS, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := SyncDir(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	return osFS{dir}, nil
}

func (o osFS) path(name string) string { return filepath.Join(o.dir, name) }

func (o osFS) Open(name string) (File, error) {
	f, err := os.OpenFile(o.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (o osFS) Rename(from, to string) error { return os.Rename(o.path(from), o.path(to)) }
func (o osFS) Remove(name string) error     { return os.Remove(o.path(name)) }
func (o osFS) Sync() error                  { return SyncDir(o.dir) }

func (o osFS) List() ([]string, error) {
	entries, err := os.ReadDir(o.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
