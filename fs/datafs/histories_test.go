package datafs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestRandomHistoriesOfTwoMounts has two nodes take turns at random in changing and looking at a small tree. Whatever one has done, the other's next call sees, and
// both see what the model of a file system says.
func TestRandomHistoriesOfTwoMounts(t *testing.T) {
	a, b := two(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		top := fmt.Sprintf("run%d-%d", run, time.Now().UnixNano())
		if err := os.Mkdir(path.Join(a, top), 0o755); err != nil {
			rt.Fatal(err)
		}
		h := &history{t: rt, roots: [2]string{path.Join(a, top), path.Join(b, top)}, root: newModelDir()}
		defer h.close()
		rt.Repeat(map[string]func(*rapid.T){
			"create":   h.create,
			"append":   h.append,
			"truncate": h.truncate,
			"mkdir":    h.mkdir,
			"symlink":  h.symlink,
			"remove":   h.remove,
			"rename":   h.rename,
			"link":     h.link,
			"chmod":    h.chmod,
			"utimes":   h.utimes,
			"open":     h.open,
			"write":    h.write,
			"closeOne": h.closeOne,
			"look":     h.look,
			"list":     h.list,
			"":         h.lookAtOne,
		})
		h.lookAtAll()
	})
}

// A modelFile is what a name names.
type modelFile struct {
	mode    os.FileMode
	content []byte
	target  string
	links   int
	mtime   int64 // 0: whatever it is
	names   map[string]*modelFile
}

func newModelDir() *modelFile {
	return &modelFile{mode: os.ModeDir | 0o755, links: 1, names: map[string]*modelFile{}}
}

func (m *modelFile) isDir() bool { return m.names != nil }

type history struct {
	t     *rapid.T
	roots [2]string
	root  *modelFile
	files []*openFile
}

type openFile struct {
	f  *os.File
	m  *modelFile
	on int
}

func (h *history) close() {
	for _, o := range h.files {
		_ = o.f.Close()
	}
}

var historyPaths = func() []string {
	all := []string{"d", "e", "d/d"}
	for _, dir := range []string{"", "d", "e", "d/d"} {
		all = append(all, path.Join(dir, "x"), path.Join(dir, "y"))
	}
	return all
}()

func (h *history) mount(t *rapid.T) string { return h.roots[rapid.IntRange(0, 1).Draw(t, "mount")] }
func (h *history) path(t *rapid.T, what string) string {
	return rapid.SampledFrom(historyPaths).Draw(t, what)
}

// find walks the model: the directory that p is in, and what it names; nil if that is not there.
func (h *history) find(p string) (dir, m *modelFile, name string) {
	dir = h.root
	parts := strings.Split(p, "/")
	for _, part := range parts[:len(parts)-1] {
		if dir = dir.names[part]; dir == nil || !dir.isDir() {
			return nil, nil, ""
		}
	}
	name = parts[len(parts)-1]
	return dir, dir.names[name], name
}

// file finds a regular file, through nothing.
func (h *history) file(p string) *modelFile {
	_, m, _ := h.find(p)
	if m == nil || !m.mode.IsRegular() {
		return nil
	}
	return m
}

// agree compares whether something was done with whether the model says so.
func (h *history) agree(t *rapid.T, err error, want bool) bool {
	t.Helper()
	if (err == nil) != want {
		t.Fatalf("got %v, the model says that it works: %v", err, want)
	}
	return want
}

func (h *history) create(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	dir, m, name := h.find(p)
	data := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "data")
	if rapid.Bool().Draw(t, "large") {
		data = bytes.Repeat(append(data, 'x'), 2000)
	}
	if m != nil && m.mode&os.ModeSymlink != 0 {
		return
	}
	if h.agree(t, os.WriteFile(path.Join(root, p), data, 0o644), dir != nil && (m == nil || !m.isDir())) {
		if m == nil {
			m = &modelFile{mode: 0o644, links: 1}
			dir.names[name] = m
		}
		m.content, m.mtime = data, 0
	}
}

func (h *history) append(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	m := h.file(p)
	if m == nil {
		return
	}
	f, err := os.OpenFile(path.Join(root, p), os.O_WRONLY|os.O_APPEND, 0)
	h.agree(t, err, true)
	data := rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(t, "data")
	_, err = f.Write(data)
	h.agree(t, err, true)
	h.agree(t, f.Close(), true)
	m.content, m.mtime = slices.Concat(m.content, data), 0
}

func (h *history) truncate(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	m := h.file(p)
	size := rapid.IntRange(0, 20_000).Draw(t, "size")
	if m == nil {
		return
	}
	h.agree(t, os.Truncate(path.Join(root, p), int64(size)), true)
	grown := make([]byte, size)
	copy(grown, m.content)
	m.content, m.mtime = grown, 0
}

func (h *history) mkdir(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	dir, m, name := h.find(p)
	if h.agree(t, os.Mkdir(path.Join(root, p), 0o755), dir != nil && m == nil) {
		dir.names[name] = newModelDir()
	}
}

func (h *history) symlink(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	dir, m, name := h.find(p)
	if h.agree(t, os.Symlink("to-"+name, path.Join(root, p)), dir != nil && m == nil) {
		dir.names[name] = &modelFile{mode: os.ModeSymlink | 0o777, target: "to-" + name, links: 1}
	}
}

func (h *history) remove(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	dir, m, name := h.find(p)
	if h.agree(t, os.Remove(path.Join(root, p)), m != nil && len(m.names) == 0) {
		delete(dir.names, name)
		m.links--
	}
}

func (h *history) rename(t *rapid.T) {
	root, from, to := h.mount(t), h.path(t, "from"), h.path(t, "to")
	dir, m, name := h.find(from)
	newDir, old, newName := h.find(to)
	ok := m != nil && newDir != nil && !(m.isDir() && strings.HasPrefix(to+"/", from+"/") && from != to)
	if ok && old != nil && old != m {
		ok = m.isDir() == old.isDir() && len(old.names) == 0
	}
	if !h.agree(t, unix.Rename(path.Join(root, from), path.Join(root, to)), ok) || m == old {
		return // two names of one file stay
	}
	if old != nil {
		old.links--
	}
	delete(dir.names, name)
	newDir.names[newName] = m
}

func (h *history) link(t *rapid.T) {
	root, from, to := h.mount(t), h.path(t, "from"), h.path(t, "to")
	_, m, _ := h.find(from)
	dir, old, name := h.find(to)
	if h.agree(t, os.Link(path.Join(root, from), path.Join(root, to)), m != nil && !m.isDir() && dir != nil && old == nil) {
		dir.names[name] = m
		m.links++
	}
}

func (h *history) chmod(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	_, m, _ := h.find(p)
	mode := os.FileMode(rapid.SampledFrom([]int{0o600, 0o640, 0o755}).Draw(t, "mode"))
	if m == nil || m.mode&os.ModeSymlink != 0 {
		return
	}
	if m.isDir() {
		mode = 0o755
	}
	h.agree(t, os.Chmod(path.Join(root, p), mode), true)
	m.mode = m.mode&os.ModeType | mode
}

func (h *history) utimes(t *rapid.T) {
	root, p := h.mount(t), h.path(t, "path")
	m := h.file(p)
	if m == nil {
		return
	}
	m.mtime = rapid.Int64Range(1, 1e18).Draw(t, "mtime")
	h.agree(t, os.Chtimes(path.Join(root, p), time.Unix(0, m.mtime), time.Unix(0, m.mtime)), true)
}

// open keeps a file open, for writes whose outcome both mounts see once they are synced.
func (h *history) open(t *rapid.T) {
	on, p := rapid.IntRange(0, 1).Draw(t, "mount"), h.path(t, "path")
	m := h.file(p)
	if m == nil || len(h.files) > 4 {
		return
	}
	f, err := os.OpenFile(path.Join(h.roots[on], p), os.O_RDWR, 0)
	h.agree(t, err, true)
	h.files = append(h.files, &openFile{f: f, m: m, on: on})
}

func (h *history) write(t *rapid.T) {
	if len(h.files) == 0 {
		return
	}
	o := rapid.SampledFrom(h.files).Draw(t, "file")
	off := rapid.IntRange(0, 15_000).Draw(t, "offset")
	data := rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(t, "data")
	_, err := o.f.WriteAt(data, int64(off))
	h.agree(t, err, true)
	h.agree(t, o.f.Sync(), true)
	if grow := off + len(data) - len(o.m.content); grow > 0 {
		o.m.content = append(slices.Clone(o.m.content), make([]byte, grow)...)
	}
	o.m.content, o.m.mtime = slices.Clone(o.m.content), 0
	copy(o.m.content[off:], data)
	for _, other := range h.files {
		if other.m == o.m {
			h.readOpen(t, other)
		}
	}
}

func (h *history) readOpen(t *rapid.T, o *openFile) {
	t.Helper()
	st, err := o.f.Stat()
	h.agree(t, err, true)
	if st.Size() != int64(len(o.m.content)) {
		t.Fatalf("an open file has %d bytes, want %d", st.Size(), len(o.m.content))
	}
	got := make([]byte, len(o.m.content))
	if _, err := o.f.ReadAt(got, 0); len(got) > 0 && err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, o.m.content) {
		t.Fatalf("an open file differs")
	}
}

func (h *history) closeOne(t *rapid.T) {
	if len(h.files) == 0 {
		return
	}
	i := rapid.IntRange(0, len(h.files)-1).Draw(t, "file")
	h.readOpen(t, h.files[i])
	h.agree(t, h.files[i].f.Close(), true)
	h.files = slices.Delete(h.files, i, i+1)
}

func (h *history) look(t *rapid.T) {
	for range 3 {
		h.lookAt(t, h.mount(t), h.path(t, "path"))
	}
}

func (h *history) lookAtOne(t *rapid.T) {
	p := h.path(t, "path")
	h.lookAt(t, h.roots[0], p)
	h.lookAt(t, h.roots[1], p)
}

func (h *history) lookAt(t *rapid.T, root, p string) {
	t.Helper()
	_, m, _ := h.find(p)
	st, err := os.Lstat(path.Join(root, p))
	if m == nil {
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			t.Fatalf("%s: %v, %v; want nothing there", p, st, err)
		}
		return
	}
	h.agree(t, err, true)
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case st.Mode() != m.mode:
		t.Fatalf("%s: mode %s, want %s", p, st.Mode(), m.mode)
	case !m.isDir() && ok && int(sys.Nlink) != m.links:
		t.Fatalf("%s: %d links, want %d", p, sys.Nlink, m.links)
	case m.mtime != 0 && st.ModTime().UnixNano() != m.mtime:
		t.Fatalf("%s: mtime %d, want %d", p, st.ModTime().UnixNano(), m.mtime)
	case m.mode.IsRegular():
		got, err := os.ReadFile(path.Join(root, p))
		if err != nil || st.Size() != int64(len(m.content)) || !bytes.Equal(got, m.content) {
			t.Fatalf("%s: stat says %d bytes, read %d, want %d, equal %v; %v", p, st.Size(), len(got), len(m.content), bytes.Equal(got, m.content), err)
		}
	case m.mode&os.ModeSymlink != 0:
		if got, err := os.Readlink(path.Join(root, p)); err != nil || got != m.target {
			t.Fatalf("%s: to %q, %v", p, got, err)
		}
	}
}

func (h *history) list(t *rapid.T) {
	root := h.mount(t)
	dir := rapid.SampledFrom([]string{"", "d", "e", "d/d"}).Draw(t, "dir")
	m := h.root
	if dir != "" {
		_, m, _ = h.find(dir)
	}
	entries, err := os.ReadDir(path.Join(root, dir))
	if m == nil || !m.isDir() {
		h.agree(t, err, false)
		return
	}
	h.agree(t, err, true)
	var got, want []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	for name := range m.names {
		want = append(want, name)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("%q has %v, want %v", dir, got, want)
	}
}

func (h *history) lookAtAll() {
	for _, root := range h.roots {
		for _, p := range historyPaths {
			h.lookAt(h.t, root, p)
		}
	}
}
