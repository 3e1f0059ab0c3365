package synth

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// ValueSpec describes a [Value] file.
type ValueSpec struct {
	// Attr gives owner, times and permission bits (0: 0444, or 0666 with Write). Its size is ignored.
	Attr Attr
	// Read makes the content. A read at offset 0 makes it anew, later ones of the same open file see what that one saw.
	Read func(ctx context.Context) ([]byte, error)
	// Write commits a new content before it returns; nil makes the file read-only. A content that comes in several
	// writes is committed as it grows, each time from its first byte.
	Write func(ctx context.Context, data []byte) error
	// Size gives the exact size if it is cheaper to know than to Read.
	Size func(ctx context.Context) (int64, error)
	// Max is the largest content accepted; 0 means dc.MaxValueBytes.
	Max int
}

// Value is a small file that is read whole and replaced whole: a setting, a generated text. It commits in write(2);
// truncating it or closing it does nothing. It cannot be appended to.
func Value(key string, s ValueSpec) File {
	if s.Attr.Mode == 0 {
		s.Attr.Mode = 0o444
		if s.Write != nil {
			s.Attr.Mode = 0o666
		}
	}
	if s.Max == 0 {
		s.Max = dc.MaxValueBytes
	}
	return &valueFile{key: key, s: s}
}

type valueFile struct {
	key string
	s   ValueSpec
}

func (f *valueFile) Key() string { return f.key }

func (f *valueFile) Attr(ctx context.Context) (Attr, error) {
	a := f.s.Attr
	a.IsDir = false
	if f.s.Size != nil {
		size, err := f.s.Size(ctx)
		a.Size = size
		return a, err
	}
	data, err := f.s.Read(ctx)
	a.Size = int64(len(data))
	return a, err
}

func (f *valueFile) Open(_ context.Context, flags uint32) (Handle, error) {
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY
	if writes && f.s.Write == nil {
		return nil, dc.Errorf(dc.Denied, "open", f.key, "the file is read-only")
	}
	if writes && flags&unix.O_APPEND != 0 {
		return nil, dc.Errorf(dc.Unsupported, "open", f.key, "a value cannot be appended to: write it whole, with > instead of >>")
	}
	return &valueHandle{f: f}, nil
}

type valueHandle struct {
	f *valueFile

	mu     sync.Mutex
	seen   []byte // what the reads of this handle see, from the last read at 0
	loaded bool
	image  []byte // what the writes of this handle have committed so far
}

func (h *valueHandle) Read(ctx context.Context, dst []byte, off int64) (int, error) {
	h.mu.Lock()
	seen, loaded := h.seen, h.loaded
	h.mu.Unlock()
	if off == 0 || !loaded {
		data, err := h.f.s.Read(ctx)
		if err != nil {
			return 0, err
		}
		seen = data
		h.mu.Lock()
		h.seen, h.loaded = data, true
		h.mu.Unlock()
	}
	return readAt(dst, seen, off), nil
}

func (h *valueHandle) Write(ctx context.Context, data []byte, off int64) (int, error) {
	h.mu.Lock()
	image := h.image
	h.mu.Unlock()
	switch {
	case off == 0:
		image = append([]byte(nil), data...)
	case off == int64(len(image)):
		image = append(image[:len(image):len(image)], data...)
	default:
		return 0, dc.Errorf(dc.Invalid, "write", h.f.key, "a value is written whole from its start, not at offset %d", off)
	}
	if len(image) > h.f.s.Max {
		return 0, dc.Errorf(dc.TooLarge, "write", h.f.key, "%d bytes exceed the limit of %d", len(image), h.f.s.Max)
	}
	if err := h.f.s.Write(ctx, image); err != nil {
		return 0, err
	}
	h.mu.Lock()
	h.image, h.loaded = image, false
	h.mu.Unlock()
	return len(data), nil
}

func (h *valueHandle) Release() {}

// readAt answers a pread(2) from a content in memory.
func readAt(dst, content []byte, off int64) int {
	if off < 0 || off >= int64(len(content)) {
		return 0
	}
	return copy(dst, content[off:])
}
