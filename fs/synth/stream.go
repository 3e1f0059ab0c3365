package synth

import "context"

// StreamSpec describes a [Stream] file.
type StreamSpec struct {
	Attr Attr // owner, times and permission bits (0: 0444)
	// Open starts a stream for one open file; flags are open(2)'s.
	Open func(ctx context.Context, flags uint32) (Source, error)
}

// Stream is a file that is read as it happens: a read blocks until there is something (O_NONBLOCK: EAGAIN), a signal interrupts
// it, and offsets mean nothing. Its size is 0, since nobody knows it.
func Stream(key string, s StreamSpec) File {
	if s.Attr.Mode == 0 {
		s.Attr.Mode = 0o444
	}
	s.Attr.IsDir, s.Attr.Size = false, 0
	return &streamFile{key: key, s: s}
}

type streamFile struct {
	key string
	s   StreamSpec
}

func (f *streamFile) Key() string                        { return f.key }
func (f *streamFile) Attr(context.Context) (Attr, error) { return f.s.Attr, nil }

func (f *streamFile) Open(ctx context.Context, flags uint32) (Handle, error) {
	src, err := f.s.Open(ctx, flags)
	if err != nil {
		return nil, err
	}
	return &streamHandle{newCursor(src)}, nil
}

type streamHandle struct{ c *cursor }

func (h *streamHandle) Read(ctx context.Context, dst []byte, _ int64) (int, error) {
	return h.c.read(ctx, dst)
}
func (h *streamHandle) Stream() bool { return true }
func (h *streamHandle) Release()     { h.c.close() }
