package fs_test

import (
	"context"
	"sort"
	"strings"
	"sync"
	"time"

	"missingos/fs/synth"
	"missingos/srv/dc"
)

// memory is a room in memory: files that keep what is written, as a table of kv does.
type memory struct {
	key string

	mu    sync.Mutex
	files map[string]*memoryFile
	dirs  map[string]*memory
	extra map[string]synth.Node
}

func newMemory(key string) *memory {
	return &memory{key: key, files: map[string]*memoryFile{}, dirs: map[string]*memory{}, extra: map[string]synth.Node{}}
}

func (d *memory) Key() string { return d.key }

func (d *memory) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o777}, nil
}

func (d *memory) Lookup(_ context.Context, name string) (synth.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f, ok := d.files[name]; ok {
		return f, nil
	}
	if sub, ok := d.dirs[name]; ok {
		return sub, nil
	}
	if n, ok := d.extra[name]; ok {
		return n, nil
	}
	return nil, dc.Errorf(dc.NotFound, "lookup", name, "")
}

func (d *memory) List(_ context.Context, after string, limit int) ([]synth.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []synth.DirEntry
	for name := range d.files {
		list = append(list, synth.DirEntry{Name: name, Key: d.key + "/" + name})
	}
	for name := range d.dirs {
		list = append(list, synth.DirEntry{Name: name, Key: d.key + "/" + name, IsDir: true})
	}
	for name := range d.extra {
		if name != ".dc" {
			list = append(list, synth.DirEntry{Name: name, Key: d.key + "/" + name})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	at := sort.Search(len(list), func(i int) bool { return list[i].Name > after })
	return list[at:min(len(list), at+limit)], nil
}

func (d *memory) Create(_ context.Context, name string, flags, mode uint32) (synth.Node, synth.Handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.files[name]; ok {
		return nil, nil, dc.Errorf(dc.Exists, "create", name, "")
	}
	f := &memoryFile{key: d.key + "/" + name, mode: mode}
	d.files[name] = f
	return f, &memoryHandle{f: f, flags: flags}, nil
}

func (d *memory) Mkdir(_ context.Context, name string, _ uint32) (synth.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sub := newMemory(d.key + "/" + name)
	d.dirs[name] = sub
	return sub, nil
}

func (d *memory) Unlink(_ context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.files[name]; !ok {
		return dc.Errorf(dc.NotFound, "unlink", name, "")
	}
	delete(d.files, name)
	return nil
}

func (d *memory) Rmdir(_ context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sub := d.dirs[name]
	if sub == nil {
		return dc.Errorf(dc.NotFound, "rmdir", name, "")
	}
	if len(sub.files) > 0 {
		return dc.Errorf(dc.NotEmpty, "rmdir", name, "%d rows are left", len(sub.files))
	}
	delete(d.dirs, name)
	return nil
}

func (d *memory) Rename(_ context.Context, name string, newDir synth.Node, newName string, _ uint32) error {
	to := newDir.(*memory)
	d.mu.Lock()
	f := d.files[name]
	delete(d.files, name)
	d.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	to.files[newName] = &memoryFile{key: to.key + "/" + newName, mode: f.mode, content: f.content}
	return nil
}

// memoryFile is a row: a write at 0 replaces it, O_APPEND adds.
type memoryFile struct {
	key  string
	mode uint32

	mu      sync.Mutex
	content []byte
	commits int
	calls   []string
	xattrs  map[string]string
	modTime time.Time
}

func (f *memoryFile) Key() string { return f.key }

func (f *memoryFile) Attr(context.Context) (synth.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return synth.Attr{Mode: f.mode, Size: int64(len(f.content)), ModTime: f.modTime}, nil
}

func (f *memoryFile) Open(_ context.Context, flags uint32) (synth.Handle, error) {
	f.called("open")
	return &memoryHandle{f: f, flags: flags}, nil
}

func (f *memoryFile) called(op string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, op)
}

func (f *memoryFile) took() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.calls, " ")
	f.calls = nil
	return s
}

func (f *memoryFile) Truncate(context.Context, int64, synth.Handle) error {
	f.called("truncate")
	return nil
}

func (f *memoryFile) SetAttr(_ context.Context, mode, _, _ *uint32, mtime *time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if mode != nil {
		f.mode = *mode
	}
	if mtime != nil {
		f.modTime = *mtime
	}
	return nil
}

func (f *memoryFile) Getxattr(_ context.Context, name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v, ok := f.xattrs[name]; ok {
		return []byte(v), nil
	}
	return nil, dc.NoAttr
}

func (f *memoryFile) Setxattr(_ context.Context, name string, value []byte, _ uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.xattrs == nil {
		f.xattrs = map[string]string{}
	}
	f.xattrs[name] = string(value)
	return nil
}

func (f *memoryFile) Listxattr(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.xattrs {
		names = append(names, name)
	}
	return names, nil
}

func (f *memoryFile) Removexattr(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.xattrs, name)
	return nil
}

type memoryHandle struct {
	f     *memoryFile
	flags uint32
}

const appendFlag = 0o2000

func (h *memoryHandle) Read(_ context.Context, dst []byte, off int64) (int, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if off >= int64(len(h.f.content)) {
		return 0, nil
	}
	return copy(dst, h.f.content[off:]), nil
}

func (h *memoryHandle) Write(_ context.Context, data []byte, off int64) (int, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	h.f.calls = append(h.f.calls, "write")
	if strings.HasPrefix(string(data), "bad") {
		return 0, dc.Errorf(dc.Invalid, "memory.put", h.f.key, "the value is bad: it says so itself")
	}
	h.f.commits++
	switch {
	case h.flags&appendFlag != 0:
		h.f.content = append(h.f.content, data...)
	case off == 0:
		h.f.content = append([]byte(nil), data...)
	default:
		h.f.content = append(h.f.content[:off:off], data...)
	}
	return len(data), nil
}

func (h *memoryHandle) Flush(context.Context) error {
	h.f.called("flush")
	return nil
}

func (h *memoryHandle) Release() { h.f.called("release") }
