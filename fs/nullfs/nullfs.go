package nullfs

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FS is the file system.
type FS struct {
	fuse.RawFileSystem // ENOSYS for the rest
	root               uint64
	ttl                time.Duration

	mu     sync.RWMutex
	inodes map[uint64]*inode
	last   uint64
	lists  map[uint64][]fuse.DirEntry
}

type inode struct {
	ino      uint64
	mode     uint32
	owner    fuse.Owner
	mtime    time.Time
	data     []byte
	children map[string]*inode
	unlinked bool
}

// New makes an empty file system whose root directory has the node id root; the kernel may cache names and attributes for ttl.
func New(root uint64, ttl time.Duration) *FS {
	f := &FS{RawFileSystem: fuse.NewDefaultRawFileSystem(), root: root, ttl: ttl, inodes: map[uint64]*inode{}, lists: map[uint64][]fuse.DirEntry{}, last: root}
	f.inodes[root] = &inode{ino: root, mode: unix.S_IFDIR | 0o777, mtime: time.Now(), children: map[string]*inode{}}
	return f
}

// Mount mounts an empty one at path and gives what takes it away again.
func Mount(path string, ttl time.Duration) (unmount func() error, err error) {
	s, err := fuse.NewServer(New(fuse.FUSE_ROOT_ID, ttl), path, &fuse.MountOptions{
		FsName: "null", Name: "null", MaxWrite: 1 << 20, MaxBackground: 64, DirectMount: true, DisableXAttrs: true,
	})
	if err != nil {
		return nil, err
	}
	go s.Serve()
	if err := s.WaitMount(); err != nil {
		return nil, err
	}
	return s.Unmount, nil
}

// String implements fuse.RawFileSystem.
func (f *FS) String() string { return "null" }

func (f *FS) attr(n *inode, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: n.ino, Mode: n.mode, Nlink: 1, Size: uint64(len(n.data)), Blocks: uint64(len(n.data)+511) / 512, Owner: n.owner,
		Mtime: uint64(n.mtime.Unix()), Mtimensec: uint32(n.mtime.Nanosecond()), Ctime: uint64(n.mtime.Unix()), Ctimensec: uint32(n.mtime.Nanosecond()),
	}
	if n.children != nil {
		out.Nlink = 2
	}
}

func (f *FS) entry(n *inode, out *fuse.EntryOut) {
	out.NodeId = n.ino
	out.SetEntryTimeout(f.ttl)
	out.SetAttrTimeout(f.ttl)
	f.attr(n, &out.Attr)
}

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := f.inodes[h.NodeId].children[name]
	if n == nil {
		return fuse.ENOENT
	}
	f.entry(n, out)
	return fuse.OK
}

// Forget implements fuse.RawFileSystem: an unlinked file goes with the kernel's last reference.
func (f *FS) Forget(id, _ uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.inodes[id]; n != nil && n.unlinked {
		delete(f.inodes, id)
	}
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out.SetTimeout(f.ttl)
	f.attr(f.inodes[in.NodeId], &out.Attr)
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.inodes[in.NodeId]
	if size, ok := in.GetSize(); ok {
		if size <= uint64(len(n.data)) {
			n.data = n.data[:size:size]
		} else {
			n.data = append(n.data, make([]byte, size-uint64(len(n.data)))...)
		}
	}
	if mode, ok := in.GetMode(); ok {
		n.mode = n.mode&unix.S_IFMT | mode
	}
	if uid, ok := in.GetUID(); ok {
		n.owner.Uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		n.owner.Gid = gid
	}
	if t, ok := in.GetMTime(); ok {
		n.mtime = t
	}
	out.SetTimeout(f.ttl)
	f.attr(n, &out.Attr)
	return fuse.OK
}

// add makes a child; the caller holds mu.
func (f *FS) add(parent uint64, name string, mode uint32, owner fuse.Owner) (*inode, fuse.Status) {
	dir := f.inodes[parent]
	if dir.children[name] != nil {
		return nil, fuse.Status(unix.EEXIST)
	}
	f.last++
	n := &inode{ino: f.last, mode: mode, owner: owner, mtime: time.Now()}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		n.children = map[string]*inode{}
	}
	f.inodes[n.ino], dir.children[name] = n, n
	return n, fuse.OK
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.add(in.NodeId, name, in.Mode&^uint32(unix.S_IFMT)|unix.S_IFDIR, in.Owner)
	if st == fuse.OK {
		f.entry(n, out)
	}
	return st
}

// Create implements fuse.RawFileSystem.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.add(in.NodeId, name, in.Mode&^uint32(unix.S_IFMT)|unix.S_IFREG, in.Owner)
	if st == fuse.OK {
		f.entry(n, &out.EntryOut)
		f.opened(&out.OpenOut)
	}
	return st
}

func (f *FS) remove(parent uint64, name string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir := f.inodes[parent]
	n := dir.children[name]
	switch {
	case n == nil:
		return fuse.ENOENT
	case len(n.children) > 0:
		return fuse.Status(unix.ENOTEMPTY)
	}
	delete(dir.children, name)
	n.unlinked = true
	return fuse.OK
}

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name)
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name)
}

// Rename implements fuse.RawFileSystem.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to := f.inodes[in.NodeId], f.inodes[in.Newdir]
	n := from.children[name]
	if n == nil {
		return fuse.ENOENT
	}
	if old := to.children[newName]; old != nil {
		old.unlinked = true
	}
	delete(from.children, name)
	to.children[newName] = n
	return fuse.OK
}

func (f *FS) opened(out *fuse.OpenOut) {
	if f.ttl > 0 {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
}

// Open implements fuse.RawFileSystem.
func (f *FS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.opened(out)
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	data := f.inodes[in.NodeId].data
	n := copy(buf, data[min(in.Offset, uint64(len(data))):])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.inodes[in.NodeId]
	if end := int(in.Offset) + len(data); end > len(n.data) {
		n.data = append(n.data, make([]byte, end-len(n.data))...)
	}
	copy(n.data[in.Offset:], data)
	n.mtime = time.Now()
	return uint32(len(data)), fuse.OK
}

// Flush implements fuse.RawFileSystem.
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Fsync implements fuse.RawFileSystem.
func (f *FS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Release implements fuse.RawFileSystem.
func (f *FS) Release(<-chan struct{}, *fuse.ReleaseIn) {}

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []fuse.DirEntry{{Name: ".", Mode: unix.S_IFDIR}, {Name: "..", Mode: unix.S_IFDIR}}
	children := f.inodes[in.NodeId].children
	for _, name := range slices.Sorted(maps.Keys(children)) {
		list = append(list, fuse.DirEntry{Name: name, Mode: children[name].mode, Ino: children[name].ino})
	}
	f.last++
	f.lists[f.last] = list
	out.Fh = f.last
	return fuse.OK
}

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	list := f.lists[in.Fh]
	for i := in.Offset; i < uint64(len(list)) && out.AddDirEntry(list[i]); i++ {
	}
	return fuse.OK
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	list := f.lists[in.Fh]
	for i := in.Offset; i < uint64(len(list)); i++ {
		e := out.AddDirLookupEntry(list[i])
		if e == nil {
			break
		}
		if n := f.inodes[list[i].Ino]; n != nil {
			f.entry(n, e)
		}
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.lists, in.Fh)
}

// StatFs implements fuse.RawFileSystem.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255, Blocks: 1 << 30, Bfree: 1 << 29, Bavail: 1 << 29}
	return fuse.OK
}
