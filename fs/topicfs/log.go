package topicfs

import (
	"bytes"
	"context"
	"sync/atomic"

	"missingos/fs/synth"
	"missingos/srv/dc"
)

// A logFile is a topic's log: reading is by byte, every write appends. It begins with the message that was the oldest when it was looked up: for whoever
// has it open it never gets shorter. Each look-up gives another, and the kernel keeps them apart since it is [synth.Parallel].
type logFile struct {
	topic
	key  string
	base atomic.Int64 // the byte of the topic's log that is this file's first, plus one; 0: nobody has looked yet
}

func (t topic) log(key string) *logFile { return &logFile{topic: t, key: key} }

var (
	_ synth.File     = (*logFile)(nil)
	_ synth.Parallel = (*logFile)(nil)
)

func (f *logFile) Key() string { return f.key }

// Parallel lets many processes of one machine append at once.
func (f *logFile) Parallel() bool { return true }

func (f *logFile) Attr(ctx context.Context) (synth.Attr, error) {
	st, err := f.store.Stat(ctx, f.d)
	if err != nil {
		return synth.Attr{}, err
	}
	a := f.fileAttr(0o666)
	f.base.CompareAndSwap(0, st.FirstByte+1)
	a.Size = max(0, st.NextByte-f.begin())
	if !st.Last.IsZero() {
		a.ModTime = st.Last
	}
	return a, nil
}

// begin is the byte of the topic's log that is this file's first.
func (f *logFile) begin() int64 { return max(0, f.base.Load()-1) }

func (f *logFile) Open(context.Context, uint32) (synth.Handle, error) {
	h := &logHandle{f: f, turn: make(chan struct{}, 1)}
	h.turn <- struct{}{}
	return h, nil
}

// pageBytes is what a write that is a part of a longer one is a multiple of.
const pageBytes = 4096

// A logHandle is an open log.
type logHandle struct {
	f    *logFile
	turn chan struct{} // holds a token while nobody writes
	tail []byte        // guarded by turn: the beginning of a line whose rest is still to come
}

var (
	_ synth.Reader  = (*logHandle)(nil)
	_ synth.Writer  = (*logHandle)(nil)
	_ synth.Flusher = (*logHandle)(nil)
)

func (h *logHandle) Read(ctx context.Context, dst []byte, off int64) (int, error) {
	n := 0
	for n < len(dst) {
		data, err := h.f.store.Read(ctx, h.f.d, h.f.begin()+off+int64(n), len(dst)-n)
		if err != nil {
			return n, err
		}
		if len(data) == 0 {
			break
		}
		n += copy(dst[n:], data)
	}
	return n, nil
}

// Write publishes the lines of data; see the package's comment for a last one without its end.
func (h *logHandle) Write(ctx context.Context, data []byte, _ int64) (int, error) {
	if len(data) == 0 {
		return 0, nil
	}
	if err := h.lock(ctx); err != nil {
		return 0, err
	}
	defer h.unlock()
	whole, rest := split(data)
	if len(whole) > 0 {
		if err := h.publish(ctx, whole); err != nil {
			if dc.KindOf(err) == dc.TooLarge {
				h.tail = nil // refused, all of it: its beginning must not come out as a message at the close
			}
			return 0, err
		}
		h.tail = nil
	}
	if n := len(h.tail) + len(rest); n > dc.MaxValueBytes {
		h.tail = nil
		return 0, dc.Errorf(dc.TooLarge, "topic.publish", h.f.d.Name, "message of at least %d bytes exceeds the limit of %d (MaxValueBytes)", n, dc.MaxValueBytes)
	}
	h.tail = append(h.tail, rest...)
	return len(data), nil
}

// split parts data after its last complete line; a last line that has no end is complete, too, unless data looks like a part of a
// longer write.
func split(data []byte) (whole, rest []byte) {
	end := bytes.LastIndexByte(data, '\n') + 1
	if end == len(data) || len(data)%pageBytes == 0 {
		return data[:end], data[end:]
	}
	return append(bytes.Clone(data), '\n'), nil
}

// publish appends lines, after what waits for them. Lines that began in an earlier write are published by themselves if all would be too
// much for one command.
func (h *logHandle) publish(ctx context.Context, lines []byte) error {
	if len(h.tail) > 0 {
		first := lines
		if len(h.tail)+len(lines) > dc.MaxValueBytes {
			first = lines[:bytes.IndexByte(lines, '\n')+1]
		}
		joined := append(h.tail[:len(h.tail):len(h.tail)], first...)
		if _, _, err := h.f.store.Publish(ctx, h.f.d, joined); err != nil {
			return err
		}
		h.tail = nil
		if lines = lines[len(first):]; len(lines) == 0 {
			return nil
		}
	}
	_, _, err := h.f.store.Publish(ctx, h.f.d, lines)
	return err
}

// Flush commits what waits for the end of its line.
func (h *logHandle) Flush(ctx context.Context) error {
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	if len(h.tail) == 0 {
		return nil
	}
	return h.publish(ctx, []byte{'\n'})
}

func (h *logHandle) Release() {}

func (h *logHandle) lock(ctx context.Context) error {
	select {
	case <-h.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *logHandle) unlock() { h.turn <- struct{}{} }
