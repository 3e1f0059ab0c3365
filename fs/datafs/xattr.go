package datafs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/dc/file"
)

const systemACL = "system.posix_acl_" // and access, or default

// unasked answers what need not be asked: the namespaces that are not kept, and what the kernel asks while it checks permissions, of a file that was found to have
// none of it within the same call.
func (f *FS) unasked(h *fuse.InHeader, name string) (fuse.Status, bool) {
	acl := strings.HasPrefix(name, systemACL)
	if !acl && strings.HasPrefix(name, "system.") {
		return fuse.Status(unix.EOPNOTSUPP), true
	}
	if !acl && !strings.HasPrefix(name, "security.") {
		return fuse.OK, false
	}
	noACL, noXattr := f.recent.plain(h.Pid, file.Ino(h.NodeId))
	return fuse.ENODATA, acl && noACL || !acl && noXattr
}

// GetXAttr implements fuse.RawFileSystem.
func (f *FS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dst []byte) (uint32, fuse.Status) {
	if st, ok := f.unasked(h, name); ok {
		return 0, st
	}
	ctx, stop := f.begin(cancel, h)
	defer stop()
	v, err := f.cfg.Service.Xattr(ctx, file.Ino(h.NodeId), name)
	if err != nil {
		return 0, f.status(ctx, err)
	}
	return fit(dst, v)
}

// fit copies v, or says how much room it needs.
func fit(dst, v []byte) (uint32, fuse.Status) {
	if len(dst) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dst, v)), fuse.OK
}

// ListXAttr implements fuse.RawFileSystem.
func (f *FS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dst []byte) (uint32, fuse.Status) {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	names, err := f.cfg.Service.Xattrs(ctx, file.Ino(h.NodeId))
	if err != nil {
		return 0, f.status(ctx, err)
	}
	var list []byte
	for _, n := range names {
		list = append(append(list, n...), 0)
	}
	return fit(dst, list)
}

// SetXAttr implements fuse.RawFileSystem.
func (f *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	if name == synth.FenceXattr {
		return f.status(ctx, f.setFence(&in.InHeader, value))
	}
	return f.status(ctx, f.cfg.Service.SetXattr(ctx, file.Ino(in.NodeId), name, value, in.Flags))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	if name == synth.FenceXattr {
		return f.status(ctx, f.setFence(h, nil))
	}
	return f.status(ctx, f.cfg.Service.RemoveXattr(ctx, file.Ino(h.NodeId), name))
}
