package synth

import (
	"context"
	"sync"

	"missingos/srv/dc"
)

// CloneSpec describes a [Clone] file.
type CloneSpec struct {
	Attr Attr // owner, times and permission bits (0: 0666)
	// Validate looks at a request when a descriptor that it was written to is closed, so that cp, tee and cat report a bad one. Optional.
	// It may see a request that is not complete yet (a process that inherited the descriptor has exited) and changes nothing.
	Validate func(ctx context.Context, request []byte) error
	// Commit does what the request asks and gives the answer to read; nil is an empty answer. ctx ends when Commit returns: a
	// Source that works on in the background starts from context.WithoutCancel, as [Pipe] does. An error of a commit
	// that no read is waiting for goes to /dc/.dc/errors.
	Commit func(ctx context.Context, request []byte) (Source, error)
	// Empty says that reading without having written is a request too (a watch without conditions). Otherwise that reads Usage.
	Empty bool
	// Usage is the text that tells how to use the file, with a final newline.
	Usage string
	// Max is the largest request; 0 means dc.MaxSpecBytes.
	Max int
}

// Clone is a file that each opener has to itself: write a request in as many writes as it takes, then read the answer on the same
// descriptor (`exec 3<>F; cat req >&3; cat <&3`). The first read commits the request; so does closing the file without
// having read (`cp req F`). A write after that begins a new request. Offsets mean nothing.
func Clone(key string, s CloneSpec) File {
	if s.Attr.Mode == 0 {
		s.Attr.Mode = 0o666
	}
	if s.Max == 0 {
		s.Max = dc.MaxSpecBytes
	}
	s.Attr.IsDir, s.Attr.Size = false, 0
	return &cloneFile{key: key, s: s}
}

type cloneFile struct {
	key string
	s   CloneSpec
}

func (f *cloneFile) Key() string                        { return f.key }
func (f *cloneFile) Attr(context.Context) (Attr, error) { return f.s.Attr, nil }

func (f *cloneFile) Open(ctx context.Context, _ uint32) (Handle, error) {
	h := &cloneHandle{f: f, opener: context.WithoutCancel(ctx), turn: make(chan struct{}, 1)}
	h.turn <- struct{}{}
	return h, nil
}

type cloneHandle struct {
	f      *cloneFile
	opener context.Context // the opener's principal, for a commit by release
	turn   chan struct{}   // holds a token while nobody commits or replaces the answer

	mu      sync.Mutex
	request []byte
	dirty   bool          // request has bytes that were neither committed nor refused
	refused bool          // the last validation failed: closing the file must not commit it
	settled chan struct{} // not nil from a successful validation until the commit
	answer  *cursor       // what reads give, once committed
}

func (h *cloneHandle) Stream() bool { return true }

func (h *cloneHandle) Write(ctx context.Context, data []byte, _ int64) (int, error) {
	if err := h.lock(ctx); err != nil {
		return 0, err
	}
	defer h.unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.answer != nil { // a new request
		if !h.answer.close() {
			return 0, dc.Errorf(dc.Busy, "write", h.f.key, "the answer to the last request is being read")
		}
		h.answer, h.request = nil, nil
	}
	if len(h.request)+len(data) > h.f.s.Max {
		h.request, h.dirty, h.refused = nil, false, true
		return 0, dc.Errorf(dc.TooLarge, "write", h.f.key, "the request exceeds the limit of %d bytes", h.f.s.Max)
	}
	h.request = append(h.request, data...)
	h.dirty, h.refused = true, false
	return len(data), nil
}

// Flush validates what has been written; with nothing written it means nothing.
func (h *cloneHandle) Flush(ctx context.Context) error {
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	h.mu.Lock()
	dirty, request := h.dirty, h.request
	h.mu.Unlock()
	if !dirty {
		return nil
	}
	var err error
	if h.f.s.Validate != nil {
		err = h.f.s.Validate(ctx, request)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = err != nil
	if err == nil && h.settled == nil {
		h.settled = make(chan struct{})
	}
	return err
}

// Settling implements [Settler]: closed once the request that a flush has validated is committed.
func (h *cloneHandle) Settling() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.settled == nil {
		return nil
	}
	return h.settled
}

func (h *cloneHandle) Read(ctx context.Context, dst []byte, _ int64) (int, error) {
	if err := h.lock(ctx); err != nil {
		return 0, err
	}
	answer, err := h.answerOf(ctx)
	h.unlock()
	if err != nil {
		return 0, err
	}
	return answer.read(ctx, dst)
}

// answerOf commits the request if that has not been done, and gives the answer. The caller holds the turn.
func (h *cloneHandle) answerOf(ctx context.Context) (*cursor, error) {
	h.mu.Lock()
	answer, dirty := h.answer, h.dirty
	h.mu.Unlock()
	switch {
	case answer != nil:
		return answer, nil
	case !dirty && !h.f.s.Empty:
		return h.setAnswer(Bytes([]byte(h.f.s.Usage))), nil
	}
	ctx, cancel := context.WithTimeout(ctx, dc.OpTimeout)
	defer cancel()
	src, err := h.commit(ctx)
	if err != nil {
		return nil, err
	}
	return h.setAnswer(src), nil
}

// commit hands the request in, once: a refused one is gone. The caller holds the turn.
func (h *cloneHandle) commit(ctx context.Context) (Source, error) {
	h.mu.Lock()
	request := h.request
	h.request, h.dirty = nil, false
	h.mu.Unlock()
	src, err := h.f.s.Commit(ctx, request)
	h.mu.Lock()
	if h.settled != nil {
		close(h.settled)
		h.settled = nil
	}
	h.mu.Unlock()
	if src == nil {
		src = Bytes(nil)
	}
	return src, err
}

func (h *cloneHandle) setAnswer(src Source) *cursor {
	c := newCursor(src)
	h.mu.Lock()
	h.answer = c
	h.mu.Unlock()
	return c
}

// Release commits what was written and not read back, and ends the answer.
func (h *cloneHandle) Release() {
	h.mu.Lock()
	answer, pending := h.answer, h.dirty && !h.refused
	h.mu.Unlock()
	if answer != nil {
		answer.close()
	}
	if !pending {
		h.settle()
		return
	}
	ctx, cancel := context.WithTimeout(h.opener, dc.OpTimeout)
	defer cancel()
	src, err := h.commit(ctx)
	if err != nil {
		Report(ctx, dc.Wrap(err, "commit", h.f.key))
		return
	}
	src.Close()
}

func (h *cloneHandle) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.settled != nil {
		close(h.settled)
		h.settled = nil
	}
}

func (h *cloneHandle) lock(ctx context.Context) error {
	select {
	case <-h.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *cloneHandle) unlock() { h.turn <- struct{}{} }
