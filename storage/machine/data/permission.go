package data

import (
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/command"
)

// What a caller may want of an inode, as the bits of access(2).
const (
	WantExec  = 1
	WantWrite = 2
	WantRead  = 4
)

// may tells whether the mode bits of in give c what it wants (POSIX, base definitions 4.5; root needs one x bit to execute a file).
func may(in *command.DataInode, c *command.DataCaller, want uint32) bool {
	if c.GetUid() == 0 {
		return want&WantExec == 0 || isDir(in) || in.Mode&0o111 != 0
	}
	bits := in.Mode
	switch {
	case c.GetUid() == in.Uid:
		bits >>= 6
	case len(in.Acl) > 0:
		return aclAllows(in, c, want)
	case inGroup(c, in.Gid):
		bits >>= 3
	}
	return bits&want == want
}

func inGroup(c *command.DataCaller, gid uint32) bool {
	return c.GetGid() == gid || slices.Contains(c.GetGroups(), gid)
}

func owns(in *command.DataInode, c *command.DataCaller) bool {
	return c.GetUid() == 0 || c.GetUid() == in.Uid
}

// need is may as an error.
func need(op string, in *command.DataInode, c *command.DataCaller, want uint32, why string) error {
	if may(in, c, want) {
		return nil
	}
	return dc.Errorf(dc.Denied, op, inoOf(in).String(), "user %d may not %s (mode %04o, owner %d, group %d)",
		c.GetUid(), why, in.Mode&modePerm, in.Uid, in.Gid)
}

func needOwner(op string, in *command.DataInode, c *command.DataCaller) error {
	if owns(in, c) {
		return nil
	}
	return dc.Errorf(dc.NotOwner, op, inoOf(in).String(), "only its owner, user %d, may", in.Uid)
}

// mayRemove checks that c may take the entry of in out of dir: write permission, and in a sticky directory ownership of either.
func mayRemove(op string, dir, in *command.DataInode, c *command.DataCaller) error {
	if err := need(op, dir, c, WantWrite|WantExec, "change the directory"); err != nil {
		return err
	}
	if dir.Mode&modeSticky != 0 && !owns(in, c) && !owns(dir, c) {
		return dc.Errorf(dc.NotOwner, op, inoOf(in).String(), "the directory is sticky and user %d owns neither it nor the file", c.GetUid())
	}
	return nil
}

// dropPrivileges clears the set-uid and set-gid bits, as a write or a change of owner does, and the capabilities that an executable brings.
func (o *operation) dropPrivileges(in *command.DataInode) {
	if isDir(in) || o.version < 2 && !isRegular(in) {
		return
	}
	if in.Capability {
		o.dropXattr(in, []byte(xattrCapability))
	}
	in.Mode &^= modeSetUID
	if in.Mode&groupExec != 0 {
		in.Mode &^= modeSetGID
	}
}

// inherit gives a new file its group, and a new directory the set-gid bit, from a set-gid directory.
func inherit(in, dir *command.DataInode, c *command.DataCaller, version uint32) {
	if dir.Mode&modeSetGID == 0 {
		return
	}
	if !isDir(in) && version >= 2 && in.Mode&(modeSetGID|groupExec) == modeSetGID|groupExec && c.GetUid() != 0 && !inGroup(c, dir.Gid) {
		in.Mode &^= modeSetGID // or making files there would lend the directory's group
	}
	in.Gid = dir.Gid
	if in.Mode&file.TypeMask == file.Dir {
		in.Mode |= modeSetGID
	}
}
