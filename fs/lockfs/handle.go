package lockfs

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// A handle is one open file.
type handle struct {
	store   Store
	path    string
	flags   uint32
	created dc.Revision       // of the file that was opened
	keep    *client.LockLease // of an ephemeral file; nil otherwise
	turn    chan struct{}     // holds a token while no lock call and no write is under way

	mu     sync.Mutex
	seen   []byte // what reads see, from the last read at 0
	loaded bool
	whole  bool   // the value is being replaced: writes add to image
	image  []byte // what this handle has committed since
	leases map[uint64]*client.LockLease
	dead   error // a lease was lost: the answer to everything from then on
}

var (
	_ synth.Reader  = (*handle)(nil)
	_ synth.Writer  = (*handle)(nil)
	_ synth.Flusher = (*handle)(nil)
	_ synth.Locker  = (*handle)(nil)
	_ synth.Asker   = (*handle)(nil)
)

func newHandle(s Store, path string, flags uint32, created dc.Revision) *handle {
	h := &handle{
		store: s, path: path, flags: flags, created: created, turn: make(chan struct{}, 1), whole: flags&unix.O_TRUNC != 0,
		leases: map[uint64]*client.LockLease{},
	}
	h.turn <- struct{}{}
	return h
}

// usable fails for ever once a lease of the handle was lost.
func (h *handle) usable() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead != nil {
		return h.dead
	}
	if h.keep != nil {
		h.dead = h.keep.Err()
	}
	for _, x := range h.leases {
		if err := x.Err(); err != nil {
			h.dead = err
		}
	}
	return h.dead
}

// guard is a lock that the handle holds; writes through it depend on it.
func (h *handle) guard() *client.LockLease {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.leases {
		return x
	}
	return nil
}

func (h *handle) begun(ctx context.Context) error {
	select {
	case <-h.turn:
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.KindOf(ctx.Err()), "lock", h.path, "%w", ctx.Err())
	}
}

func (h *handle) done() { h.turn <- struct{}{} }

// Read sees one version of the value from a read at 0 to the next one.
func (h *handle) Read(ctx context.Context, dst []byte, off int64) (int, error) {
	if err := h.usable(); err != nil {
		return 0, err
	}
	h.mu.Lock()
	seen, loaded := h.seen, h.loaded
	h.mu.Unlock()
	if off == 0 || !loaded {
		f, err := h.current(ctx)
		if err != nil {
			return 0, err
		}
		seen = f.Value
		h.mu.Lock()
		h.seen, h.loaded = seen, true
		h.mu.Unlock()
		if err := h.usable(); err != nil { // a lease that ran out while the value was on its way
			return 0, err
		}
	}
	if off >= int64(len(seen)) {
		return 0, nil
	}
	return copy(dst, seen[off:]), nil
}

// current reads the file that was opened.
func (h *handle) current(ctx context.Context) (client.LockFile, error) {
	f, err := h.store.Read(ctx, h.path)
	if err != nil && dc.KindOf(err) == dc.NotFound || err == nil && f.Created != h.created {
		return f, dc.Errorf(dc.Stale, "lock.read", h.path, "the file was removed or replaced since it was opened")
	}
	return f, err
}

// Write commits data before it returns: appended, as the next piece of a value that is being replaced, or over a part of the value.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (int, error) {
	if err := h.begun(ctx); err != nil {
		return 0, err
	}
	defer h.done()
	if err := h.usable(); err != nil {
		return 0, err
	}
	if h.flags&unix.O_APPEND == 0 && off+int64(len(data)) > dc.MaxLockBytes {
		return 0, dc.Errorf(dc.TooLarge, "lock.put", h.path, "%d bytes exceed the limit of %d KiB of a lock file (MaxLockBytes); keep bulk data in /dc/kv or /dc/data",
			off+int64(len(data)), dc.MaxLockBytes/dc.KiB)
	}
	h.mu.Lock()
	whole, image := h.whole, h.image
	h.mu.Unlock()
	var err error
	switch {
	case h.flags&unix.O_APPEND != 0:
		err = h.put(ctx, client.LockPut{Value: data, Append: true})
	case whole:
		image = overlay(image, data, off)
		if err = h.put(ctx, client.LockPut{Value: image}); err == nil {
			h.mu.Lock()
			h.image = image
			h.mu.Unlock()
		}
	default:
		err = h.update(ctx, func(old []byte) []byte { return overlay(old, data, off) })
	}
	if err != nil {
		return 0, err
	}
	return len(data), nil
}

func (h *handle) put(ctx context.Context, p client.LockPut) error {
	p.IfCreated, p.Guard = h.created, h.guard()
	_, err := h.store.Put(ctx, h.path, p)
	return err
}

// update changes a part of the value by compare-and-set.
func (h *handle) update(ctx context.Context, change func(old []byte) []byte) error {
	const tries = 16
	for try := 1; ; try++ {
		f, err := h.current(ctx)
		if err != nil {
			return err
		}
		err = h.put(ctx, client.LockPut{Value: change(f.Value), IfVersion: f.Version})
		if err == nil || dc.KindOf(err) != dc.Conflict || try == tries {
			return err
		}
	}
}

// overlay gives old with data at off; a gap is zeros.
func overlay(old, data []byte, off int64) []byte {
	out := make([]byte, max(int64(len(old)), off+int64(len(data))))
	copy(out, old)
	copy(out[off:], data)
	return out
}

// begin starts to replace the value: the next write is its beginning. Nothing is committed.
func (h *handle) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.whole, h.image = true, nil
}

// resize cuts the value or extends it with zeros.
func (h *handle) resize(ctx context.Context, size int64) error {
	if err := h.begun(ctx); err != nil {
		return err
	}
	defer h.done()
	if err := h.usable(); err != nil {
		return err
	}
	if size > dc.MaxLockBytes {
		return dc.Errorf(dc.TooLarge, "lock.put", h.path, "%d bytes exceed the limit of %d KiB of a lock file (MaxLockBytes)", size, dc.MaxLockBytes/dc.KiB)
	}
	return h.update(ctx, func(old []byte) []byte {
		out := make([]byte, size)
		copy(out, old)
		return out
	})
}

// Flush tells close(2) of a lost lock; there is nothing else to do, everything is committed.
func (h *handle) Flush(context.Context) error { return h.usable() }

// Lock is flock(2), or fcntl(2) for the whole file. A caller that has the lock in the other mode converts it.
func (h *handle) Lock(ctx context.Context, owner uint64, exclusive, wait bool) error {
	if err := h.begun(ctx); err != nil {
		return err
	}
	defer h.done()
	if err := h.usable(); err != nil {
		return err
	}
	h.mu.Lock()
	x := h.leases[owner]
	h.mu.Unlock()
	if x != nil {
		err := x.Convert(ctx, exclusive, wait)
		if err != nil && dc.KindOf(err) != dc.Again {
			h.forget(owner, x)
		}
		return err
	}
	x, err := h.store.Acquire(ctx, h.path, exclusive, wait)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.leases[owner] = x
	h.mu.Unlock()
	return nil
}

// InTheWay is F_GETLK: a holder, anywhere in the cluster, that the caller would have to wait for. A process of another node has no number
// here and is shown as 0, so that it is not taken for a process of this one.
func (h *handle) InTheWay(ctx context.Context, owner uint64, exclusive bool) (synth.Held, bool, error) {
	if err := h.usable(); err != nil {
		return synth.Held{}, false, err
	}
	h.mu.Lock()
	own := h.leases[owner]
	h.mu.Unlock()
	holders, err := h.store.Holders(ctx, h.path)
	if err != nil {
		return synth.Held{}, false, err
	}
	here := h.store.Standing().Session
	for _, x := range holders {
		if x.Path != h.path || own != nil && own.Is(x) || !exclusive && !x.Exclusive {
			continue
		}
		held := synth.Held{Exclusive: x.Exclusive}
		if x.Session == here {
			held.PID = x.PID
		}
		return held, true, nil
	}
	return synth.Held{}, false, nil
}

func (h *handle) forget(owner uint64, x *client.LockLease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leases[owner] == x {
		delete(h.leases, owner)
		if err := x.Err(); err != nil && h.dead == nil {
			h.dead = err
		}
	}
}

// Unlock gives the lock up; nothing held is fine. It returns when the next caller may have it.
func (h *handle) Unlock(ctx context.Context, owner uint64) error {
	if err := h.usable(); err != nil {
		return err
	}
	h.mu.Lock()
	x := h.leases[owner]
	delete(h.leases, owner)
	h.mu.Unlock()
	if x == nil {
		return nil
	}
	return x.Release(ctx)
}

// Release gives up what is left, in the background.
func (h *handle) Release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.leases {
		x.Abandon()
	}
	h.leases = nil
	if h.keep != nil {
		h.keep.Abandon()
	}
}
