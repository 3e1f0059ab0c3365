package lockfs

import (
	"context"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/dc"
)

// Attributes of files.
const (
	xattrVersion = "user.dc.version"
	xattrFence   = "user.dc.fence"
)

// A file is a regular file of the store.
type file struct {
	store     Store
	path      string
	ephemeral bool
	sight     sight
}

func (f *file) Key() string { return key(f.path, false) }

func (f *file) Attr(ctx context.Context) (synth.Attr, error) {
	return f.sight.attr(ctx, f.store, f.path, false)
}

func (f *file) Open(ctx context.Context, flags uint32) (synth.Handle, error) {
	if f.ephemeral && flags&unix.O_ACCMODE != unix.O_RDONLY {
		got, keep, err := f.store.Keep(ctx, f.path, false, 0o666)
		if err != nil {
			return nil, err
		}
		h := newHandle(f.store, f.path, flags, got.Created)
		h.keep = keep
		return h, nil
	}
	got, err := f.store.Stat(ctx, f.path)
	if err != nil {
		return nil, err
	}
	return newHandle(f.store, f.path, flags, got.Created), nil
}

// Truncate resizes the value. To nothing it commits nothing: it is what opening with O_TRUNC sends, before the write that replaces the value.
func (f *file) Truncate(ctx context.Context, size int64, h synth.Handle) error {
	open, ok := h.(*handle)
	if size == 0 {
		if ok {
			open.begin()
		}
		return nil
	}
	if !ok {
		got, err := f.store.Stat(ctx, f.path)
		if err != nil {
			return err
		}
		open = newHandle(f.store, f.path, unix.O_RDWR, got.Created)
	}
	return open.resize(ctx, size)
}

func (f *file) SetAttr(ctx context.Context, mode, uid, gid *uint32, mtime *time.Time) error {
	return f.store.SetAttr(ctx, f.path, mode, uid, gid, mtime)
}

func (f *file) Getxattr(ctx context.Context, name string) ([]byte, error) {
	switch name {
	case xattrVersion:
		return version(ctx, f.store, f.path)
	case xattrFence:
		fence, err := f.store.Fence(ctx, f.path)
		if err != nil {
			return nil, err
		}
		return number(fence), nil
	}
	return nil, dc.NoAttr
}

func (f *file) Setxattr(_ context.Context, name string, _ []byte, _ uint32) error {
	return noXattr(f.path, name)
}
func (f *file) Removexattr(_ context.Context, name string) error { return noXattr(f.path, name) }

func (f *file) Listxattr(ctx context.Context) ([]string, error) {
	names := []string{xattrVersion}
	if _, err := f.store.Fence(ctx, f.path); err == nil {
		names = append(names, xattrFence)
	}
	return names, nil
}

func version(ctx context.Context, s Store, path string) ([]byte, error) {
	f, err := s.Stat(ctx, path)
	if err != nil {
		return nil, err
	}
	return number(f.Version), nil
}

func number(r dc.Revision) []byte { return strconv.AppendUint(nil, uint64(r), 10) }
