package data

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

// Commands of [FirstVersion] keep their meaning for ever. [Version] is what commands about files are proposed in; [LockVersion] is for what keeps account of
// locks.
const (
	FirstVersion = 1
	Version      = 2
	LockVersion  = 3
	newest       = LockVersion
)

// Needs is the lowest version that c means the same in.
func Needs(c *command.DataCommand) uint32 {
	switch op := c.Op.(type) {
	case *command.DataCommand_LockEpoch, *command.DataCommand_LockSession:
		return LockVersion
	case *command.DataCommand_Clone:
		return 2
	case *command.DataCommand_Make:
		if op.Make.Nameless {
			return 2
		}
	}
	return FirstVersion
}

// Orphaned is emitted when an inode has lost its last name: it can be purged once nobody has it open.
type Orphaned struct{ Ino file.Ino }

// Touched is emitted for a command that wrote inodes: they, and the names in those that are directories, may have changed.
type Touched struct {
	Request uint64 // of the command
	Inos    []file.Ino
}

// Machine applies [command.DataCommand]. It has no state of its own.
type Machine struct{}

// New makes a machine.
func New() storage.Machine { return Machine{} }

var _ storage.Machine = Machine{}

// Apply executes one command; its result is a command.DataResult.
func (Machine) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	c := &command.DataCommand{}
	if err := proto.Unmarshal(body, c); err != nil {
		panic(fmt.Sprintf("data: command does not decode: %v", err))
	}
	if c.Version < FirstVersion || c.Version > newest {
		panic(fmt.Sprintf("data: command of version %d, this build knows %d", c.Version, newest))
	}
	o := &operation{tx: tx, version: c.Version, who: c.GetCaller(), now: c.GetNow()}
	res, err := o.run(c)
	if err != nil {
		return nil, err
	}
	o.finish()
	if len(o.touched) > 0 {
		tx.Emit(Touched{c.Request, o.touched})
	}
	return encode(res), nil
}

// An operation is one command being applied. Changes to usage and block rows are gathered and written by finish.
type operation struct {
	tx      storage.Tx
	version uint32
	who     *command.DataCaller
	now     int64
	usage   *command.DataUsage
	before  command.DataUsage
	blocks  blockRows
	touched []file.Ino
}

func (o *operation) run(c *command.DataCommand) (*command.DataResult, error) {
	switch op := c.Op.(type) {
	case *command.DataCommand_Make:
		return o.makeFile(op.Make)
	case *command.DataCommand_Link:
		return o.link(op.Link)
	case *command.DataCommand_Unlink:
		return o.unlink(op.Unlink)
	case *command.DataCommand_Rename:
		return o.rename(op.Rename)
	case *command.DataCommand_SetAttr:
		return o.setAttr(op.SetAttr)
	case *command.DataCommand_Commit:
		return o.commit(op.Commit)
	case *command.DataCommand_Append:
		return o.append(op.Append)
	case *command.DataCommand_SetXattr:
		return o.setXattr(op.SetXattr)
	case *command.DataCommand_RemoveXattr:
		return o.removeXattr(op.RemoveXattr)
	case *command.DataCommand_Purge:
		return o.purge(op.Purge)
	case *command.DataCommand_Forget:
		return o.forget(op.Forget)
	case *command.DataCommand_Relocate:
		return o.relocate(op.Relocate)
	case *command.DataCommand_Clone:
		return o.clone(op.Clone)
	case *command.DataCommand_LockEpoch:
		return o.lockEpoch()
	case *command.DataCommand_LockSession:
		return o.lockSession(op.LockSession)
	}
	panic(fmt.Sprintf("data: unknown command %T", c.Op))
}

// space gives the slot's usage, to be changed in place.
func (o *operation) space(slot uint16) *command.DataUsage {
	if o.usage == nil {
		o.usage = loadUsage(o.tx, slot)
		o.before = command.DataUsage{Inodes: o.usage.Inodes, Bytes: o.usage.Bytes, Seq: o.usage.Seq}
	}
	return o.usage
}

func (o *operation) finish() {
	o.blocks.write(o.tx)
	if u := o.usage; u != nil && (u.Inodes != o.before.Inodes || u.Bytes != o.before.Bytes || u.Seq != o.before.Seq) {
		o.tx.Set(usageKey(0), encode(u))
	}
}

func (o *operation) put(in *command.DataInode) {
	o.touched = append(o.touched, inoOf(in))
	o.tx.Set(inodeKey(inoOf(in)), encode(in))
}

// touch notes a change of a directory's entries.
func (o *operation) touch(dir *command.DataInode) {
	dir.Mtime, dir.Ctime = o.now, o.now
	dir.Version++
}

// answer gives the part of an inode that callers want back: without content, so that remembered results stay small.
func answer(in *command.DataInode) *command.DataResult {
	return &command.DataResult{Inode: Bare(in)}
}

// Bare copies an inode without name, target and inline content.
func Bare(in *command.DataInode) *command.DataInode {
	return &command.DataInode{
		Ino: in.Ino, Mode: in.Mode, Nlink: in.Nlink, Uid: in.Uid, Gid: in.Gid, Rdev: in.Rdev, Size: in.Size, Allocated: in.Allocated,
		Atime: in.Atime, Mtime: in.Mtime, Ctime: in.Ctime, Btime: in.Btime, Parent: in.Parent, Version: in.Version,
		XattrBytes: in.XattrBytes, Extents: in.Extents, Listed: HasACL(in),
	}
}
