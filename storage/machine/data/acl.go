package data

import (
	"encoding/binary"
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/command"
)

// Access control lists, acl(5). They are stored as the kernel's attributes have them: a version, then entries of tag, permissions and id, in
// the order of their tags and ids. The mode and the list never contradict each other: the mode's bits for the group are the list's mask, or its
// owning group's entry where there is no mask; the others are those of the owner and of everybody else.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion     = 2
	aclHeaderBytes = 4
	aclEntryBytes  = 8

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclNobody   = 0xffffffff // the id of an entry that names nobody
)

func isACL(name []byte) bool { return string(name) == aclAccess || string(name) == aclDefault }

// An aclEntry is one line of a list. An acl is a valid one.
type (
	aclEntry struct {
		tag, perm uint16
		id        uint32
	}
	acl []aclEntry
)

// parseACL reads a list; dc.Invalid if it is not one: exactly one entry each for owner, group and other, a mask if anybody is named, nobody twice.
func parseACL(op string, b []byte) (acl, error) {
	if len(b) < aclHeaderBytes || (len(b)-aclHeaderBytes)%aclEntryBytes != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, dc.Errorf(dc.Invalid, op, "", "%d bytes are no access control list", len(b))
	}
	n := (len(b) - aclHeaderBytes) / aclEntryBytes
	if n > file.MaxACLEntries {
		return nil, dc.Errorf(dc.NoSpace, op, "", "an access control list of %d entries, the limit is %d", n, file.MaxACLEntries)
	}
	a := make(acl, 0, n)
	for b = b[aclHeaderBytes:]; len(b) > 0; b = b[aclEntryBytes:] {
		e := aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])}
		if e.tag != aclUser && e.tag != aclGroup {
			e.id = aclNobody
		}
		a = append(a, e)
	}
	slices.SortFunc(a, func(x, y aclEntry) int {
		if x.tag != y.tag {
			return int(x.tag) - int(y.tag)
		}
		return int(int64(x.id) - int64(y.id))
	})
	return a, a.check(op)
}

func (a acl) check(op string) error {
	count := map[uint16]int{}
	for i, e := range a {
		switch e.tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return dc.Errorf(dc.Invalid, op, "", "an access control list entry of unknown kind %#x", e.tag)
		}
		if e.perm&^7 != 0 {
			return dc.Errorf(dc.Invalid, op, "", "permissions %#o in an access control list", e.perm)
		}
		if i > 0 && a[i-1].tag == e.tag && a[i-1].id == e.id {
			return dc.Errorf(dc.Invalid, op, "", "an access control list names the same twice")
		}
		count[e.tag]++
	}
	named := count[aclUser]+count[aclGroup] > 0
	if count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1 || count[aclMask] > 1 || named && count[aclMask] == 0 {
		return dc.Errorf(dc.Invalid, op, "", "an access control list needs an entry each for owner, group and other, and a mask if it names anybody")
	}
	return nil
}

// stored reads a list that this machine wrote.
func stored(b []byte) acl {
	a, err := parseACL("", b)
	if err != nil {
		panic(err)
	}
	return a
}

func (a acl) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, aclHeaderBytes+len(a)*aclEntryBytes), aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// entry finds the entry of a kind that names nobody; nil if there is none.
func (a acl) entry(tag uint16) *aclEntry {
	for i := range a {
		if a[i].tag == tag {
			return &a[i]
		}
	}
	return nil
}

// class is the entry that the mode's group bits are.
func (a acl) class() *aclEntry {
	if m := a.entry(aclMask); m != nil {
		return m
	}
	return a.entry(aclGroupObj)
}

// mode gives the permission bits that the list stands for.
func (a acl) mode() uint32 {
	return uint32(a.entry(aclUserObj).perm)<<6 | uint32(a.class().perm)<<3 | uint32(a.entry(aclOther).perm)
}

// minimal tells a list that says no more than a mode does.
func (a acl) minimal() bool { return len(a) == 3 }

// aclAllows checks a caller who is neither root nor the owner against in's list, as acl(5) has it.
func aclAllows(in *command.DataInode, c *command.DataCaller, want uint32) bool {
	a := stored(in.Acl)
	mask := uint32(7)
	if m := a.entry(aclMask); m != nil {
		mask = uint32(m.perm)
	}
	inGroups := false
	for _, e := range a {
		switch {
		case e.tag == aclUser && e.id == c.GetUid():
			return uint32(e.perm)&mask&want == want
		case e.tag == aclGroupObj && inGroup(c, in.Gid), e.tag == aclGroup && inGroup(c, e.id):
			if uint32(e.perm)&mask&want == want {
				return true
			}
			inGroups = true
		}
	}
	return !inGroups && uint32(a.entry(aclOther).perm)&want == want
}

// chmodACL makes in's list say what its mode now says.
func chmodACL(in *command.DataInode) {
	if len(in.Acl) == 0 {
		return
	}
	a := stored(in.Acl)
	a.entry(aclUserObj).perm = uint16(in.Mode >> 6 & 7)
	a.class().perm = uint16(in.Mode >> 3 & 7)
	a.entry(aclOther).perm = uint16(in.Mode & 7)
	in.Acl = a.bytes()
}

// inheritACL gives a new file what its directory's default list prescribes: that list, cut down to the mode that was asked for without the umask.
func inheritACL(in, dir *command.DataInode, c *command.DataMake) {
	if len(dir.DefaultAcl) == 0 || in.Mode&file.TypeMask == file.Symlink {
		return
	}
	if c.FullMode != nil {
		in.Mode = in.Mode&file.TypeMask | *c.FullMode&modePerm
	}
	a := stored(dir.DefaultAcl)
	a.entry(aclUserObj).perm &= uint16(in.Mode >> 6 & 7)
	a.class().perm &= uint16(in.Mode >> 3 & 7)
	a.entry(aclOther).perm &= uint16(in.Mode & 7)
	in.Mode = in.Mode&^0o777 | a.mode()
	if !a.minimal() {
		in.Acl = a.bytes()
	}
	if isDir(in) {
		in.DefaultAcl = dir.DefaultAcl
	}
}

// setACL sets an access control list, which changes the mode, or the one that new files in a directory get.
func (o *operation) setACL(in *command.DataInode, c *command.DataSetXattr) (*command.DataResult, error) {
	const op = "setxattr"
	if err := o.mayACL(op, in, c.Name); err != nil {
		return nil, err
	}
	a, err := parseACL(op, c.Value)
	if err != nil {
		return nil, err
	}
	if string(c.Name) == aclDefault {
		in.DefaultAcl = a.bytes()
	} else {
		in.Mode = in.Mode&^0o777 | a.mode()
		if o.who.GetUid() != 0 && !inGroup(o.who, in.Gid) {
			in.Mode &^= modeSetGID
		}
		if in.Acl = a.bytes(); a.minimal() {
			in.Acl = nil
		}
	}
	in.Ctime = o.now
	o.put(in)
	return answer(in), nil
}

func (o *operation) removeACL(in *command.DataInode, name []byte) (*command.DataResult, error) {
	const op = "removexattr"
	if err := o.mayACL(op, in, name); err != nil {
		return nil, err
	}
	if string(name) == aclDefault {
		in.DefaultAcl = nil
	} else {
		in.Acl = nil // the mode stays as it is
	}
	in.Ctime = o.now
	o.put(in)
	return answer(in), nil
}

func (o *operation) mayACL(op string, in *command.DataInode, name []byte) error {
	switch {
	case in.Mode&file.TypeMask == file.Symlink:
		return dc.Errorf(dc.Unsupported, op, string(name), "symbolic links have no permissions")
	case string(name) == aclDefault && !isDir(in):
		return dc.Errorf(dc.Denied, op, string(name), "only directories have a default access control list")
	}
	return needOwner(op, in, o.who)
}

// readACL gives a list as getxattr(2) does; dc.NoAttr if the mode says it all.
func readACL(in *command.DataInode, name []byte) ([]byte, error) {
	b := in.Acl
	if string(name) == aclDefault {
		b = in.DefaultAcl
	}
	if len(b) == 0 {
		return nil, dc.Errorf(dc.NoAttr, "getxattr", string(name), "")
	}
	return b, nil
}

// HasACL tells whether an inode, or what [Bare] leaves of one, has access control lists.
func HasACL(in *command.DataInode) bool {
	return len(in.Acl)+len(in.DefaultAcl) > 0 || in.Listed
}

// aclNames lists the lists that in has, as attributes.
func aclNames(in *command.DataInode) (names []string) {
	if len(in.Acl) > 0 {
		names = append(names, aclAccess)
	}
	if len(in.DefaultAcl) > 0 {
		names = append(names, aclDefault)
	}
	return names
}
