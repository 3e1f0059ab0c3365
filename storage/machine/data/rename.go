package data

import (
	"bytes"
	"fmt"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

// Flags of renameat2(2).
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// A move is a rename whose two ends have been loaded. newDir is dir when both are the same directory, so that changes meet.
type move struct {
	dir, newDir   *command.DataInode
	name, newName []byte
	in            *command.DataInode
	victim        *command.DataInode // what newName names now, or nil
}

func (o *operation) rename(c *command.DataRename) (*command.DataResult, error) {
	const op = "rename"
	if c.Flags&^uint32(RenameNoReplace|RenameExchange) != 0 || c.Flags == RenameNoReplace|RenameExchange {
		return nil, dc.Errorf(dc.Invalid, op, string(c.Name), "unsupported flags %#x", c.Flags)
	}
	m, err := o.loadMove(op, c)
	if err != nil {
		return nil, err
	}
	exchange := c.Flags == RenameExchange
	switch {
	case exchange && m.victim == nil:
		return nil, dc.Errorf(dc.NotFound, op, string(c.NewName), "")
	case c.Flags == RenameNoReplace && m.victim != nil:
		return nil, dc.Errorf(dc.Exists, op, string(c.NewName), "")
	}
	if m.victim != nil && m.victim.Ino == m.in.Ino {
		return answer(m.in), nil // two names of one file: POSIX wants nothing to happen
	}
	if err := o.mayMove(op, m, exchange); err != nil {
		return nil, err
	}
	if exchange {
		return o.exchange(m), nil
	}
	return o.replace(m), nil
}

func (o *operation) loadMove(op string, c *command.DataRename) (*move, error) {
	if err := checkName(op, c.NewName); err != nil {
		return nil, err
	}
	m := &move{name: c.Name, newName: c.NewName}
	var err error
	if m.dir, err = liveDir(o.tx, op, file.Ino(c.Parent)); err != nil {
		return nil, err
	}
	m.newDir = m.dir
	if c.NewParent != c.Parent {
		if m.newDir, err = liveDir(o.tx, op, file.Ino(c.NewParent)); err != nil {
			return nil, err
		}
	}
	for _, dir := range []*command.DataInode{m.dir, m.newDir} {
		if err := need(op, dir, o.who, WantExec, "enter the directory"); err != nil {
			return nil, err
		}
	}
	if m.in, err = named(o.tx, op, inoOf(m.dir), c.Name); err != nil {
		return nil, err
	}
	if _, ok := loadDentry(o.tx, inoOf(m.newDir), c.NewName); ok {
		if m.victim, err = named(o.tx, op, inoOf(m.newDir), c.NewName); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (o *operation) mayMove(op string, m *move, exchange bool) error {
	if err := mayRemove(op, m.dir, m.in, o.who); err != nil {
		return err
	}
	if err := need(op, m.newDir, o.who, WantWrite|WantExec, "change the directory"); err != nil {
		return err
	}
	if err := o.mayLeave(op, m.in, m.dir, m.newDir); err != nil {
		return err
	}
	if m.victim == nil {
		return o.mayGrow(op, m)
	}
	if err := mayRemove(op, m.newDir, m.victim, o.who); err != nil {
		return err
	}
	if exchange {
		return o.mayLeave(op, m.victim, m.newDir, m.dir)
	}
	switch {
	case isDir(m.in) && !isDir(m.victim):
		return dc.Errorf(dc.NotDir, op, string(m.newName), "a directory cannot replace a file")
	case !isDir(m.in) && isDir(m.victim):
		return dc.Errorf(dc.IsDir, op, string(m.newName), "a file cannot replace a directory")
	case isDir(m.victim) && !empty(o.tx, inoOf(m.victim)):
		return dc.Errorf(dc.NotEmpty, op, string(m.newName), "")
	}
	return nil
}

func (o *operation) mayGrow(op string, m *move) error {
	if isDir(m.in) && m.dir != m.newDir && m.newDir.Nlink >= file.MaxLinks {
		return dc.Errorf(dc.TooManyLinks, op, string(m.newName), "the directory has %d subdirectories, the limit", m.newDir.Nlink-dirLinks)
	}
	return nil
}

// mayLeave checks a directory that changes its parent: the caller must be able to write its "..", and it must not end up inside itself.
func (o *operation) mayLeave(op string, in, from, to *command.DataInode) error {
	if !isDir(in) || from == to {
		return nil
	}
	if err := need(op, in, o.who, WantWrite, "move the directory to another parent"); err != nil {
		return err
	}
	for at := to; ; {
		if at.Ino == in.Ino {
			return dc.Errorf(dc.Invalid, op, inoOf(in).String(), "a directory cannot move into itself")
		}
		if inoOf(at) == file.Root {
			return nil
		}
		up, ok := loadInode(o.tx, file.Ino(at.Parent))
		if !ok {
			panic(&storage.Fault{Err: fmt.Errorf("data: %s has the parent %d, which does not exist", inoOf(at), at.Parent)})
		}
		at = up
	}
}

func (o *operation) replace(m *move) *command.DataResult {
	res := &command.DataResult{}
	o.tx.Delete(dentryKey(inoOf(m.dir), m.name))
	if m.victim != nil {
		o.lose(m.newDir, m.newName, m.victim, res)
	}
	o.enter(m.newDir, m.newName, m.in)
	o.moveLink(m.in, inoOf(m.dir), m.name, inoOf(m.newDir), bytes.Clone(m.newName))
	if isDir(m.in) && m.dir != m.newDir {
		m.dir.Nlink--
		m.newDir.Nlink++
	}
	m.in.Ctime = o.now
	o.putMove(m)
	res.Inode = Bare(m.in)
	return res
}

func (o *operation) exchange(m *move) *command.DataResult {
	o.enter(m.newDir, m.newName, m.in)
	o.enter(m.dir, m.name, m.victim)
	o.moveLink(m.in, inoOf(m.dir), m.name, inoOf(m.newDir), bytes.Clone(m.newName))
	o.moveLink(m.victim, inoOf(m.newDir), m.newName, inoOf(m.dir), bytes.Clone(m.name))
	if isDir(m.in) && m.dir != m.newDir {
		m.dir.Nlink--
		m.newDir.Nlink++
	}
	if isDir(m.victim) && m.dir != m.newDir {
		m.newDir.Nlink--
		m.dir.Nlink++
	}
	m.in.Ctime, m.victim.Ctime = o.now, o.now
	o.put(m.victim)
	o.putMove(m)
	return answer(m.in)
}

func (o *operation) putMove(m *move) {
	o.touch(m.dir)
	o.put(m.dir)
	if m.newDir != m.dir {
		o.touch(m.newDir)
		o.put(m.newDir)
	}
	o.put(m.in)
}
