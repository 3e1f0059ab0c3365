package synth

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"missingos/srv/dc"
)

// A Source is what a stream or the answer of a clone file is read from, chunk by chunk, as fast as the reader asks and no
// faster. Calls of Next on one Source do not overlap; Close comes once, after the last.
type Source interface {
	// Next blocks until there is a chunk, which stays valid until the following call; io.EOF is the end. When ctx ends (the
	// reader was interrupted) it returns ctx's error and loses nothing: the next call gives what this one would have.
	Next(ctx context.Context) ([]byte, error)
	Close()
}

// A Readier is a Source that can tell whether Next would return at once; O_NONBLOCK readers need it. Of a Source without
// it they wait [pollWait].
type Readier interface {
	Ready() bool
}

const (
	pollWait  = 50 * time.Millisecond // how long a non-blocking read waits for a Source that is no Readier
	pipeBytes = 64 << 10              // what a Pipe holds before emit blocks
)

// Bytes is a Source of one chunk.
func Bytes(b []byte) Source {
	return Once(func(context.Context) ([]byte, error) { return b, nil })
}

// Once is a Source of the one chunk that fn gives, however long it takes; an interrupted fn is called again by the next read.
func Once(fn func(ctx context.Context) ([]byte, error)) Source { return &once{fn: fn} }

type once struct {
	fn   func(ctx context.Context) ([]byte, error)
	done bool
}

func (o *once) Next(ctx context.Context) ([]byte, error) {
	if o.done {
		return nil, io.EOF
	}
	b, err := o.fn(ctx)
	if err == nil {
		o.done = true
	}
	return b, err
}

func (o *once) Close() {}

// Pages is a Source that asks next for one chunk after the other until it gives io.EOF: a listing read by pages.
func Pages(next func(ctx context.Context) ([]byte, error)) Source { return pages(next) }

type pages func(ctx context.Context) ([]byte, error)

func (p pages) Next(ctx context.Context) ([]byte, error) { return p(ctx) }
func (p pages) Close()                                   {}

// Pipe is a Source fed by a goroutine of its own, which runs fn until it returns or the file is closed. emit copies its
// argument, blocks while 64 KiB wait to be read, and fails when the reader is gone; fn should then return. What fn
// returns ends the stream: nil as end of file, an error as the reader's error after what was emitted before it. The ctx of fn keeps
// the values of ctx (the principal), not its end. Several chunks may come out as one.
func Pipe(ctx context.Context, fn func(ctx context.Context, emit func([]byte) error) error) Source {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &pipe{cancel: cancel, done: make(chan struct{}), data: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	go func() {
		defer close(p.done)
		err := fn(ctx, func(b []byte) error { return p.emit(ctx, b) })
		p.mu.Lock()
		p.ended, p.err = true, err
		p.mu.Unlock()
		wake(p.data)
	}()
	return p
}

type pipe struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when fn has returned
	data   chan struct{} // holds a token when there may be something to read
	room   chan struct{} // holds a token when there may be room to write

	mu    sync.Mutex
	buf   []byte
	ended bool
	err   error
}

func (p *pipe) emit(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.mu.Lock()
		n := min(len(b), pipeBytes-len(p.buf))
		p.buf = append(p.buf, b[:n]...)
		p.mu.Unlock()
		b = b[n:]
		if n > 0 {
			wake(p.data)
			continue
		}
		select {
		case <-p.room:
		case <-ctx.Done():
		}
	}
	return nil
}

// take gives what there is; ended is true when nothing more will come.
func (p *pipe) take() (b []byte, ended bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, p.buf = p.buf, nil
	return b, p.ended && len(b) == 0, p.err
}

func (p *pipe) Next(ctx context.Context) ([]byte, error) {
	for {
		b, ended, err := p.take()
		switch {
		case len(b) > 0:
			wake(p.room)
			return b, nil
		case ended && err != nil:
			return nil, err
		case ended:
			return nil, io.EOF
		}
		select {
		case <-p.data:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *pipe) Ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.buf) > 0 || p.ended
}

func (p *pipe) Close() {
	p.cancel()
	<-p.done
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// A cursor reads a Source through read(2)s of any size. Reads on one handle are served one at a time; waiting for the turn ends with ctx.
type cursor struct {
	turn chan struct{} // holds a token while nobody reads
	src  Source        // guarded by turn
	rest []byte        // guarded by turn: what the last chunk still holds
	err  error         // guarded by turn: the end
}

func newCursor(src Source) *cursor {
	c := &cursor{turn: make(chan struct{}, 1), src: src}
	c.turn <- struct{}{}
	return c
}

func (c *cursor) read(ctx context.Context, dst []byte) (int, error) {
	wait, cancel := ctx, context.CancelFunc(func() {})
	poll := NonBlocking(ctx)
	if poll {
		wait, cancel = context.WithTimeout(ctx, pollWait)
	}
	defer cancel()
	select {
	case <-c.turn:
	case <-wait.Done():
		return 0, waitError(ctx, wait)
	}
	defer func() { c.turn <- struct{}{} }()
	for len(c.rest) == 0 && c.err == nil {
		if r, ok := c.src.(Readier); ok && poll && !r.Ready() {
			return 0, dc.Again
		}
		chunk, err := c.src.Next(wait)
		if err != nil && wait.Err() != nil {
			return 0, waitError(ctx, wait)
		}
		c.rest, c.err = chunk, err
	}
	n := copy(dst, c.rest)
	c.rest = c.rest[n:]
	if n > 0 || errors.Is(c.err, io.EOF) {
		return n, nil
	}
	return 0, c.err
}

// waitError says why a wait ended: the caller was interrupted, or it did not want to wait.
func waitError(ctx, wait context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return dc.Again
}

// close ends the source, unless a read is under way.
func (c *cursor) close() (closed bool) {
	select {
	case <-c.turn:
		c.src.Close()
		return true
	default:
		return false
	}
}
