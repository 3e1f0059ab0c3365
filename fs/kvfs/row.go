package kvfs

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

const (
	xattrVersion = "user.dc.version"
	xattrTTL     = "user.dc.ttl"
)

// A row is a file of a table.
type row struct {
	store Store
	table client.Descriptor
	path  string
	sight sight
}

func (f *row) Key() string { return key(f.table, f.path, false) }

func (f *row) Attr(ctx context.Context) (synth.Attr, error) {
	return f.sight.attr(ctx, f.store, f.table, f.path, false)
}

func (f *row) Open(ctx context.Context, flags uint32) (synth.Handle, error) {
	// The look-up just before has seen the row: which one it was is all that an open row remembers. Every read and write asks for itself.
	r := f.sight.last.Load()
	if r == nil {
		now, err := f.store.Stat(ctx, f.table, f.path)
		if err != nil {
			return nil, err
		}
		r = &now
	}
	h := newHandle(f.store, f.table, f.path, flags, *r)
	if flags&unix.O_TRUNC != 0 {
		h.replace()
	}
	return h, nil
}

// Truncate resizes the value. To nothing it commits nothing: it is what opening with O_TRUNC sends, before the write that replaces the value.
func (f *row) Truncate(ctx context.Context, size int64, h synth.Handle) error {
	open, ok := h.(*handle)
	if size == 0 && ok {
		open.replace()
		return nil
	}
	if size == 0 {
		return nil
	}
	_, err := f.store.Put(ctx, f.table, f.path, client.KVPut{How: client.KVResize, Offset: size, MustExist: true})
	return err
}

func (f *row) SetAttr(ctx context.Context, mode, uid, gid *uint32, mtime *time.Time) error {
	return f.store.SetAttr(ctx, f.table, f.path, mode, uid, gid, mtime)
}

func (f *row) Getxattr(ctx context.Context, name string) ([]byte, error) {
	if name != xattrVersion && name != xattrTTL {
		return nil, dc.NoAttr
	}
	r, err := f.store.Stat(ctx, f.table, f.path)
	if err != nil {
		return nil, err
	}
	if name == xattrTTL {
		if r.Expires.IsZero() {
			return nil, dc.NoAttr
		}
		return []byte(max(time.Millisecond, time.Until(r.Expires).Truncate(time.Millisecond)).String()), nil
	}
	return strconv.AppendUint(nil, uint64(r.Revision), 10), nil
}

// Listxattr lists nothing: cp -a, mv and rsync -X would try to set on the copy what only the store sets.
func (f *row) Listxattr(context.Context) ([]string, error) { return nil, nil }

func (f *row) Setxattr(ctx context.Context, name string, value []byte, _ uint32) error {
	if name == xattrTTL {
		ttl, err := synth.Duration(strings.TrimSpace(string(value)), dc.MaxKVTTL)
		if err != nil {
			return dc.Wrap(err, "kv.ttl", f.table.Name+"/"+f.path)
		}
		return f.store.SetTTL(ctx, f.table, f.path, ttl)
	}
	return noXattr(f.table.Name+"/"+f.path, name)
}

func (f *row) Removexattr(ctx context.Context, name string) error {
	if name == xattrTTL {
		return f.store.SetTTL(ctx, f.table, f.path, 0)
	}
	return noXattr(f.table.Name+"/"+f.path, name)
}

func noXattr(path, name string) error {
	if strings.HasPrefix(name, "user.dc.") {
		return dc.Errorf(dc.Denied, "kv.setxattr", path, "%s is set by the store", name)
	}
	return dc.Errorf(dc.Unsupported, "kv.setxattr", path, "rows of /dc/kv keep no attributes of your own")
}

// A handle is an open row.
type handle struct {
	store   Store
	table   client.Descriptor
	path    string
	flags   uint32
	turn    chan struct{}
	created dc.Revision // of the row that was opened; who has the turn may change it

	mu        sync.Mutex
	replacing bool // the next write is the beginning of a new value
	// Bound to the row that was opened: another that has its name since is not written (dc.Stale). What replaces or appends begins unbound, so
	// that `echo x > row` does not fail when somebody else's mv comes between its open and its write; a row made with O_EXCL is its maker's.
	bound  bool
	seen   []byte // what reads see, from the last read at 0
	loaded bool
}

var (
	_ synth.Reader = (*handle)(nil)
	_ synth.Writer = (*handle)(nil)
)

func newHandle(s Store, t client.Descriptor, path string, flags uint32, r client.KVRow) *handle {
	h := &handle{store: s, table: t, path: path, flags: flags, created: r.Created, turn: make(chan struct{}, 1), bound: flags&unix.O_EXCL != 0}
	h.turn <- struct{}{}
	return h
}

// replace makes the next write the beginning of a new value. Nothing is committed.
func (h *handle) replace() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.replacing = true
}

// Read sees one version of the value from a read at 0 to the next one.
func (h *handle) Read(ctx context.Context, dst []byte, off int64) (int, error) {
	h.mu.Lock()
	seen, loaded := h.seen, h.loaded
	h.mu.Unlock()
	if off == 0 || !loaded {
		// A row that has replaced the opened one (mv) is read as well: whoever opens a row while it is replaced must see one of the two.
		_, value, err := h.store.Get(ctx, h.table, h.path)
		if err != nil && dc.KindOf(err) == dc.NotFound {
			return 0, dc.Errorf(dc.Stale, "kv.get", h.table.Name+"/"+h.path, "the row was removed since it was opened")
		}
		if err != nil {
			return 0, err
		}
		seen = value
		h.mu.Lock()
		h.seen, h.loaded = value, true
		h.mu.Unlock()
	}
	if off >= int64(len(seen)) {
		return 0, nil
	}
	return copy(dst, seen[off:]), nil
}

// Write commits data before it returns.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (int, error) {
	select { // one at a time: the first write of a new value must not overtake the second
	case <-h.turn:
	case <-ctx.Done():
		return 0, dc.Errorf(dc.KindOf(ctx.Err()), "kv.put", h.table.Name+"/"+h.path, "%w", ctx.Err())
	}
	defer func() { h.turn <- struct{}{} }()
	h.mu.Lock()
	replacing, bound := h.replacing, h.bound
	h.mu.Unlock()
	p := client.KVPut{How: client.KVPatch, Data: data, Offset: off, IfCreated: h.created}
	if !bound && (replacing || h.flags&unix.O_APPEND != 0) {
		p.IfCreated, p.MustExist = 0, true
	}
	switch {
	case h.flags&unix.O_APPEND != 0:
		p.How, p.Offset = client.KVAppend, 0
	case replacing && off == 0:
		p.How = client.KVReplace
	case replacing: // a new value that begins with a hole
		p.How, p.Data, p.Offset = client.KVReplace, append(make([]byte, min(off, dc.MaxValueBytes)), data...), 0
	}
	if off > dc.MaxValueBytes && p.How != client.KVAppend {
		return 0, dc.Errorf(dc.TooLarge, "kv.put", h.table.Name+"/"+h.path, "a value of %d bytes exceeds the limit of 1 MiB of a row (MaxValueBytes); keep it in /dc/data", off+int64(len(data)))
	}
	r, err := h.store.Put(ctx, h.table, h.path, p)
	if err != nil && p.MustExist && dc.KindOf(err) == dc.NotFound {
		return 0, dc.Errorf(dc.Stale, "kv.put", h.table.Name+"/"+h.path, "the row was removed since it was opened")
	}
	if err != nil {
		return 0, err
	}
	h.mu.Lock()
	h.replacing, h.bound = false, true
	h.mu.Unlock()
	h.created = r.Created
	return len(data), nil
}

// Release has nothing to do: everything is committed.
func (h *handle) Release() {}
