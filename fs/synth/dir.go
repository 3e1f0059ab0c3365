package synth

import (
	"context"
	"slices"
	"sort"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// A dirHandle lists a directory by pages of dc.MaxScanPage names. It continues after the last name of a page, so that names
// which come and go meanwhile neither hide others nor show them twice, and holds one page, however long the directory is.
// Positions are ordinals: 1 is after ".", 2 after "..", n+2 after the n-th child.
type dirHandle struct {
	dir Dir

	mu     sync.Mutex
	loaded bool
	base   uint64     // position before page[0]
	page   []DirEntry // one page
	last   bool       // there is nothing after page
	marks  []mark     // where pages began, thinned to maxMarks, for seekdir(3)
	stride int        // a mark every so many pages
	pages  int        // since the last rewind
}

// A mark says that the children from position base on are those after the name after.
type mark struct {
	base  uint64
	after string
}

const (
	maxMarks   = 256
	firstChild = 2 // the position after "." and ".."
)

// OpenDir implements fuse.RawFileSystem.
func (s *Server) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	d, st := s.dir(in.NodeId)
	if st != fuse.OK {
		return st
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	s.settle(ctx, d.Key())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastHandle++
	s.dirs[s.lastHandle] = &dirHandle{dir: d, stride: 1}
	out.Fh = s.lastHandle
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (s *Server) ReleaseDir(in *fuse.ReleaseIn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirs, in.Fh)
}

// FsyncDir implements fuse.RawFileSystem.
func (s *Server) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// ReadDir implements fuse.RawFileSystem.
func (s *Server) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, out.AddDirEntry)
}

// ReadDirPlus implements fuse.RawFileSystem. It tells no attributes: the kernel would have to ask again before it used them, as
// it may keep nothing, and each costs a request of the cluster.
func (s *Server) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
}

func (s *Server) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	s.mu.Lock()
	d, ok := s.dirs[in.Fh]
	s.mu.Unlock()
	if !ok {
		return fuse.EBADF
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	return s.door.Status(ctx, d.read(ctx, in.Offset, add))
}

// read adds entries from position pos on until add refuses one, or a page ends.
func (d *dirHandle) read(ctx context.Context, pos uint64, add func(fuse.DirEntry) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if pos == 0 {
		d.rewind()
	}
	self := inode(d.dir.Key())
	for i, name := range []string{".", ".."} {
		if pos == uint64(i) {
			if !add(fuse.DirEntry{Name: name, Mode: unix.S_IFDIR, Ino: self, Off: pos + 1}) {
				return nil
			}
			pos++
		}
	}
	if err := d.find(ctx, pos); err != nil {
		return err
	}
	for ; pos >= d.base && pos < d.base+uint64(len(d.page)); pos++ {
		c := d.page[pos-d.base]
		e := fuse.DirEntry{Name: c.Name, Mode: unix.S_IFREG, Ino: c.Ino, Off: pos + 1}
		if c.IsDir {
			e.Mode = unix.S_IFDIR
		}
		if e.Ino == 0 {
			e.Ino = inode(c.Key)
		}
		if !add(e) {
			return nil
		}
	}
	return nil
}

func (d *dirHandle) rewind() {
	d.loaded, d.last, d.base, d.page, d.marks = false, false, firstChild, nil, nil
	d.stride, d.pages = 1, 0
}

// find loads the page that holds position pos; there is none if the directory ends before.
func (d *dirHandle) find(ctx context.Context, pos uint64) error {
	if !d.loaded || pos < d.base {
		from := mark{base: firstChild}
		if i := sort.Search(len(d.marks), func(i int) bool { return d.marks[i].base > pos }); i > 0 {
			from = d.marks[i-1]
		}
		if err := d.load(ctx, from); err != nil {
			return err
		}
	}
	for pos >= d.base+uint64(len(d.page)) && !d.last {
		next := mark{base: d.base + uint64(len(d.page)), after: d.page[len(d.page)-1].Name}
		if err := d.load(ctx, next); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirHandle) load(ctx context.Context, m mark) error {
	page, err := d.dir.List(ctx, m.after, dc.MaxScanPage)
	if err != nil {
		return err
	}
	d.loaded, d.base, d.page, d.last = true, m.base, page, len(page) < dc.MaxScanPage
	if len(d.marks) == 0 || m.base > d.marks[len(d.marks)-1].base {
		if d.pages%d.stride == 0 {
			d.marks = append(d.marks, m)
		}
		d.pages++
	}
	if len(d.marks) > maxMarks { // keep every other one
		kept := d.marks[:0]
		for i := 0; i < len(d.marks); i += 2 {
			kept = append(kept, d.marks[i])
		}
		d.marks = slices.Clip(kept)
		d.stride *= 2
	}
	return nil
}
