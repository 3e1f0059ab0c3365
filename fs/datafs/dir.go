package datafs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	dirPage  = 512 // entries fetched at once
	firstOff = 2   // "." and ".." come before the entries
)

// A dirHandle is an open directory. The kernel names a place in it by an offset, which is the number of entries before it; the
// handle remembers the name that each page starts after, so it never holds more than a page and can go back.
type dirHandle struct {
	ino file.Ino

	mu     sync.Mutex
	starts []string // starts[i] is the name before page i
	page   int      // the page held
	held   []file.Entry
	parent file.Ino
}

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	c, err := f.cfg.Service.Open(ctx, file.Ino(in.NodeId), fuse.R_OK)
	if err != nil {
		return f.status(ctx, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.dirs[f.last] = &dirHandle{ino: c.Attr.Ino, parent: c.Attr.Parent, starts: []string{""}, page: -1}
	out.Fh = f.last
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	f.mu.Lock()
	d := f.dirs[in.Fh]
	delete(f.dirs, in.Fh)
	f.mu.Unlock()
	if d != nil {
		f.cfg.Service.Closed(d.ino)
	}
}

// FsyncDir implements fuse.RawFileSystem: names are durable when the call that made them returns.
func (f *FS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(cancel, in, func(e fuse.DirEntry, _ *file.Attr) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *FS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(cancel, in, func(e fuse.DirEntry, a *file.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && a != nil {
			fillEntry(entry, f.saw(*a))
		}
		return entry != nil
	})
}

func (f *FS) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry, *file.Attr) bool) fuse.Status {
	f.mu.Lock()
	d := f.dirs[in.Fh]
	f.mu.Unlock()
	if d == nil {
		return fuse.EBADF
	}
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	off := in.Offset
	if off == 0 {
		d.starts, d.page, d.held = []string{""}, -1, nil // rewinddir(3) sees the directory as it is now
		if !add(fuse.DirEntry{Name: ".", Ino: uint64(d.ino), Mode: file.Dir, Off: 1}, nil) {
			return fuse.OK
		}
		off = 1
	}
	if off == 1 {
		if !add(fuse.DirEntry{Name: "..", Ino: uint64(max(d.parent, 1)), Mode: file.Dir, Off: firstOff}, nil) {
			return fuse.OK
		}
		off = firstOff
	}
	for ; ; off++ {
		e, err := d.entry(ctx, f.cfg.Service, int(off-firstOff))
		if err != nil {
			return f.status(ctx, err)
		}
		if e == nil || !add(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Attr.Ino), Mode: e.Attr.Mode, Off: off + 1}, &e.Attr) {
			return fuse.OK
		}
	}
}

// entry gives entry number i, or nil after the last. The lock is held while its page is fetched: one listing has one reader.
func (d *dirHandle) entry(ctx context.Context, names Names, i int) (*file.Entry, error) {
	page := i / dirPage
	if page >= len(d.starts) {
		if page > len(d.starts) || d.page != len(d.starts)-1 || len(d.held) < dirPage {
			return nil, nil // beyond the end, or beyond where this listing has been
		}
		d.starts = append(d.starts, d.held[dirPage-1].Name)
	}
	if page != d.page {
		held, err := names.List(ctx, d.ino, d.starts[page], dirPage)
		if err != nil {
			if dc.KindOf(err) == dc.Stale {
				return nil, nil // removed: a directory without entries
			}
			return nil, err
		}
		d.page, d.held = page, held
	}
	if i %= dirPage; i < len(d.held) {
		return &d.held[i], nil
	}
	return nil, nil
}
