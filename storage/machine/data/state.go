package data

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

const (
	modeSetUID  = 0o4000
	modeSetGID  = 0o2000
	modeSticky  = 0o1000
	modePerm    = 0o7777
	groupExec   = 0o010
	dirLinks    = 2 // "." and the name in the parent
	rowsPerStep = 1024
	controlName = ".dc" // hidden in every directory of the tree
)

var marshal = proto.MarshalOptions{Deterministic: true}

// encode gives the stored form of a row; the records cannot fail to encode.
func encode(m proto.Message) []byte {
	b, err := marshal.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("data: encode %T: %v", m, err))
	}
	return b
}

// decode reads a row that this machine wrote.
func decode(what string, b []byte, m proto.Message) {
	if err := proto.Unmarshal(b, m); err != nil {
		panic(&storage.Fault{Err: fmt.Errorf("data: row of %s does not decode: %w", what, err)})
	}
}

// loadInode reads an inode. The root directory exists from the beginning: anyone may make files there, none may remove another's.
func loadInode(rd storage.Reader, ino file.Ino) (*command.DataInode, bool) {
	b, ok := rd.Get(inodeKey(ino))
	if !ok {
		if ino != file.Root {
			return nil, false
		}
		return &command.DataInode{Ino: uint64(file.Root), Mode: file.Dir | modeSticky | 0o777, Nlink: dirLinks, Parent: uint64(file.Root)}, true
	}
	in := &command.DataInode{}
	decode(ino.String(), b, in)
	return in, true
}

func inoOf(in *command.DataInode) file.Ino { return file.Ino(in.Ino) }

func isDir(in *command.DataInode) bool     { return in.Mode&file.TypeMask == file.Dir }
func isRegular(in *command.DataInode) bool { return in.Mode&file.TypeMask == file.Regular }

func loadUsage(rd storage.Reader, slot uint16) *command.DataUsage {
	u := &command.DataUsage{Seq: uint64(file.Root)}
	if b, ok := rd.Get(usageKey(slot)); ok {
		decode("usage", b, u)
	}
	return u
}

func loadDentry(rd storage.Reader, dir file.Ino, name []byte) (*command.DataDentry, bool) {
	b, ok := rd.Get(dentryKey(dir, name))
	if !ok {
		return nil, false
	}
	d := &command.DataDentry{}
	decode("directory entry", b, d)
	return d, true
}

func loadBlock(rd storage.Reader, slot uint16, id []byte) (*command.DataBlock, bool) {
	b, ok := rd.Get(blockKey(slot, id))
	if !ok {
		return nil, false
	}
	bl := &command.DataBlock{}
	decode("block", b, bl)
	return bl, true
}

// liveDir loads a directory that can be looked into.
func liveDir(rd storage.Reader, op string, ino file.Ino) (*command.DataInode, error) {
	in, ok := loadInode(rd, ino)
	if !ok || in.Nlink == 0 {
		return nil, dc.Errorf(dc.NotFound, op, ino.String(), "the directory has been removed")
	}
	if !isDir(in) {
		return nil, dc.Errorf(dc.NotDir, op, ino.String(), "")
	}
	return in, nil
}

// named loads the entry of a name and its inode.
func named(rd storage.Reader, op string, dir file.Ino, name []byte) (*command.DataInode, error) {
	d, ok := loadDentry(rd, dir, name)
	if !ok {
		return nil, dc.Errorf(dc.NotFound, op, string(name), "")
	}
	in, ok := loadInode(rd, file.Ino(d.Ino))
	if !ok {
		panic(&storage.Fault{Err: fmt.Errorf("data: entry %q of %s names %d, which does not exist", name, dir, d.Ino)})
	}
	return in, nil
}

// empty tells whether a directory has no entries.
func empty(rd storage.Reader, dir file.Ino) bool {
	s := prefix(inoKey(kindDentry, dir, 0))
	s.KeysOnly = true
	for range rd.Scan(s) {
		return false
	}
	return true
}

// checkName refuses what cannot be a name. "." and ".." are the kernel's.
func checkName(op string, name []byte) error {
	switch {
	case len(name) == 0 || string(name) == "." || string(name) == "..":
		return dc.Errorf(dc.Invalid, op, string(name), "not a name for a file")
	case string(name) == controlName:
		return dc.Errorf(dc.NotOwner, op, string(name), "the name is kept for the directory's control files")
	case len(name) > dc.MaxNameBytes:
		return dc.Errorf(dc.NameTooLong, op, string(name), "the name has %d bytes, the limit is %d", len(name), dc.MaxNameBytes)
	}
	for _, c := range name {
		if c == '/' || c == 0 {
			return dc.Errorf(dc.Invalid, op, string(name), "a name cannot contain %q", c)
		}
	}
	return nil
}
