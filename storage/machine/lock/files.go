package lock

import (
	"strings"

	"missingos/srv/dc"
	"missingos/storage/command"
)

// file reads the record of path; nil if there is none. The root always exists.
func (s *stage) file(path string) *command.LockFile { return Stat(s, path) }

// store writes the record of path; the key and a row of its own have path and value.
func (s *stage) store(path string, f *command.LockFile) {
	named, value := f.Path, f.Value
	f.Path, f.Value = "", nil
	s.put(fileKey(path), f)
	f.Path, f.Value = named, value
}

// parent checks that a file can be made at path and gives its directory.
func (s *stage) parent(op, path string) (*command.LockFile, error) {
	if err := CheckPath(op, path); err != nil {
		return nil, err
	}
	if path == "" {
		return nil, dc.Errorf(dc.IsDir, op, "/dc/lock", "")
	}
	dir, _ := split(path)
	d := s.file(dir)
	switch {
	case d == nil:
		return nil, dc.Errorf(dc.NotFound, op, path, "there is no directory %s", dir)
	case !d.Dir:
		return nil, dc.Errorf(dc.NotDir, op, path, "%s is a file", dir)
	}
	return d, nil
}

func (s *stage) guarded(op string, g *command.LockGuard) error {
	if g == nil {
		return nil
	}
	h := Holder(s, g.Path, g.Session, g.Owner)
	if h == nil || s.session(g.Session) == nil {
		return dc.Errorf(dc.Stale, op, g.Path, "the writer no longer holds the lock it had: its session has ended; open the file and take the lock again")
	}
	return nil
}

func (s *stage) createFile(c *command.LockCreate) (*command.LockResult, error) {
	const op = "lock.create"
	d, err := s.parent(op, c.Path)
	if err != nil {
		return nil, err
	}
	if f := s.file(c.Path); f != nil {
		switch {
		case c.Exclusive || c.Dir:
			return nil, dc.Errorf(dc.Exists, op, c.Path, "")
		case f.Dir:
			return nil, dc.Errorf(dc.IsDir, op, c.Path, "")
		}
		if err := s.keep(op, c.Path, f, c.Session, c.Owner); err != nil {
			return nil, err
		}
		return s.opened(c.Path, f), nil
	}
	if s.state.Files >= dc.MaxLockFiles {
		return nil, dc.Errorf(dc.NoSpace, op, c.Path, "/dc/lock holds its limit of %d files (MaxLockFiles); keep bulk data in /dc/kv", dc.MaxLockFiles)
	}
	f := &command.LockFile{Dir: c.Dir, Mode: c.Mode, Uid: c.Uid, Gid: c.Gid, Ephemeral: d.Ephemeral && !c.Dir}
	f.Created = s.begin()
	if err := s.keep(op, c.Path, f, c.Session, c.Owner); err != nil {
		return nil, err
	}
	kind := command.LockEvent_KIND_PUT
	if c.Dir {
		kind = command.LockEvent_KIND_MKDIR
	}
	s.state.Files++
	s.change(kind, c.Path, f)
	return s.opened(c.Path, f), nil
}

func (s *stage) opened(path string, f *command.LockFile) *command.LockResult {
	f.Path = path
	return &command.LockResult{Version: f.Version, File: f}
}

// change stamps f, writes its record and records the event. f.Value, if set, is only for the event: the caller has written its row.
func (s *stage) change(kind command.LockEvent_Kind, path string, f *command.LockFile) {
	f.Version, f.MtimeMs = s.begin(), s.tx.Clock()
	s.store(path, f)
	ev := &command.LockEvent{Kind: kind, Path: path, File: clone(f)}
	s.revise(ev)
}

// clone copies a record without its path; the value is shared, as values never change. Written out because every change makes one, and a
// round through the wire form cost more than all else of a small put; a test sees that no field is forgotten.
func clone(f *command.LockFile) *command.LockFile {
	return &command.LockFile{
		Dir: f.Dir, Created: f.Created, Version: f.Version, Value: f.Value, Mode: f.Mode, Uid: f.Uid, Gid: f.Gid, MtimeMs: f.MtimeMs,
		Ephemeral: f.Ephemeral, Holds: f.Holds, Absent: f.Absent, Size: f.Size, Entries: f.Entries,
	}
}

func (s *stage) putFile(c *command.LockPut) (*command.LockResult, error) {
	const op = "lock.put"
	if err := s.guarded(op, c.Guard); err != nil {
		return nil, err
	}
	if err := s.fits(op, c.Path, len(c.Value)); err != nil {
		return nil, err
	}
	f := s.file(c.Path)
	if f != nil {
		switch {
		case f.Dir:
			return nil, dc.Errorf(dc.IsDir, op, c.Path, "")
		case c.IfCreated != 0 && f.Created != c.IfCreated:
			return nil, dc.Errorf(dc.Stale, op, c.Path, "the file was removed or replaced since it was opened")
		case c.IfVersion != 0 && f.Version != c.IfVersion:
			return nil, dc.Errorf(dc.Conflict, op, c.Path, "the file is at version %d, not %d: read it again", f.Version, c.IfVersion)
		}
	} else {
		switch {
		case c.IfCreated != 0:
			return nil, dc.Errorf(dc.Stale, op, c.Path, "the file was removed since it was opened")
		case c.IfVersion != 0:
			return nil, dc.Errorf(dc.Conflict, op, c.Path, "there is no such file, so it is not at version %d", c.IfVersion)
		case c.MustExist:
			return nil, dc.Errorf(dc.NotFound, op, c.Path, "")
		}
	}
	f, err := s.write(op, c.Path, f, c.Value, c.Append, &command.LockFile{Mode: c.Mode, Uid: c.Uid, Gid: c.Gid})
	if err != nil {
		return nil, err
	}
	return s.opened(c.Path, &command.LockFile{Created: f.Created, Version: f.Version, Size: f.Size}), nil
}

func (s *stage) fits(op, path string, size int) error {
	if size > dc.MaxLockBytes {
		return dc.Errorf(dc.TooLarge, op, path, "%d bytes exceed the limit of %d KiB of a lock file (MaxLockBytes); keep bulk data in /dc/kv or /dc/data",
			size, dc.MaxLockBytes/dc.KiB)
	}
	return nil
}

// write gives path a value, making it like fresh if f is nil.
func (s *stage) write(op, path string, f *command.LockFile, value []byte, extend bool, fresh *command.LockFile) (*command.LockFile, error) {
	if f == nil {
		d, err := s.parent(op, path)
		if err != nil {
			return nil, err
		}
		if d.Ephemeral {
			return nil, dc.Errorf(dc.Invalid, op, path, "files of an ephemeral directory are made by opening them, and live while they are held open")
		}
		if s.state.Files >= dc.MaxLockFiles {
			return nil, dc.Errorf(dc.NoSpace, op, path, "/dc/lock holds its limit of %d files (MaxLockFiles); keep bulk data in /dc/kv", dc.MaxLockFiles)
		}
		s.state.Files++
		f = fresh
		f.Created = s.begin()
	}
	if extend {
		old, _ := s.Get(pathKey(rowValue, path))
		value = append(append(make([]byte, 0, len(old)+len(value)), old...), value...)
		if err := s.fits(op, path, len(value)); err != nil {
			return nil, err
		}
	}
	s.state.Bytes += uint64(len(value)) - f.Size
	f.Size, f.Value = uint64(len(value)), value
	s.set(pathKey(rowValue, path), value)
	s.change(command.LockEvent_KIND_PUT, path, f)
	return f, nil
}

func (s *stage) removeFile(c *command.LockRemove) (*command.LockResult, error) {
	const op = "lock.remove"
	if err := CheckPath(op, c.Path); err != nil {
		return nil, err
	}
	if err := s.guarded(op, c.Guard); err != nil {
		return nil, err
	}
	f := s.file(c.Path)
	switch {
	case f == nil:
		return nil, dc.Errorf(dc.NotFound, op, c.Path, "")
	case c.Path == "":
		return nil, dc.Errorf(dc.Busy, op, "/dc/lock", "the root of the store cannot be removed")
	case c.Dir && !f.Dir:
		return nil, dc.Errorf(dc.NotDir, op, c.Path, "")
	case !c.Dir && f.Dir:
		return nil, dc.Errorf(dc.IsDir, op, c.Path, "")
	case c.IfVersion != 0 && f.Version != c.IfVersion:
		return nil, dc.Errorf(dc.Conflict, op, c.Path, "the file is at version %d, not %d: read it again", f.Version, c.IfVersion)
	case f.Dir && s.hasChildren(c.Path):
		return nil, dc.Errorf(dc.NotEmpty, op, c.Path, "")
	}
	s.drop(c.Path, f)
	return &command.LockResult{}, nil
}

func (s *stage) hasChildren(dir string) bool {
	prefix := string(childPrefix(dir))
	for _, k := range s.order { // rows that this very command added, which a scan does not see
		if strings.HasPrefix(k, prefix) && len(k) > len(prefix) && s.rows[k] != nil {
			return true
		}
	}
	return len(List(s, dir, "", 1)) > 0
}

// drop removes a file or an empty directory. Descriptors that keep an ephemeral file are forgotten by their own release.
func (s *stage) drop(path string, f *command.LockFile) {
	s.delete(fileKey(path))
	s.state.Files--
	kind := command.LockEvent_KIND_RMDIR
	if !f.Dir {
		kind = command.LockEvent_KIND_DELETE
		s.state.Bytes -= f.Size
		s.delete(pathKey(rowValue, path))
	}
	s.revise(&command.LockEvent{Kind: kind, Path: path})
}

func (s *stage) rename(c *command.LockRename) (*command.LockResult, error) {
	const op = "lock.rename"
	if err := CheckPath(op, c.From); err != nil {
		return nil, err
	}
	d, err := s.parent(op, c.To)
	if err != nil {
		return nil, err
	}
	from, to := s.file(c.From), s.file(c.To)
	switch {
	case from == nil:
		return nil, dc.Errorf(dc.NotFound, op, c.From, "")
	case c.From == "":
		return nil, dc.Errorf(dc.Busy, op, "/dc/lock", "the root of the store cannot be moved")
	case to != nil && c.NoReplace:
		return nil, dc.Errorf(dc.Exists, op, c.To, "")
	case c.From == c.To:
		return &command.LockResult{}, nil
	case strings.HasPrefix(c.To, c.From+"/"):
		return nil, dc.Errorf(dc.Invalid, op, c.From, "a directory cannot be moved into itself")
	case from.Ephemeral && !from.Dir || to != nil && to.Ephemeral && !to.Dir || d.Ephemeral && !from.Dir:
		return nil, dc.Errorf(dc.Invalid, op, c.From, "an ephemeral file cannot be moved or replaced: it lives where it was opened")
	case to != nil && to.Dir && !from.Dir:
		return nil, dc.Errorf(dc.IsDir, op, c.To, "")
	case to != nil && !to.Dir && from.Dir:
		return nil, dc.Errorf(dc.NotDir, op, c.To, "")
	case to != nil && to.Dir && s.hasChildren(c.To):
		return nil, dc.Errorf(dc.NotEmpty, op, c.To, "")
	}
	moves, err := s.subtree(op, c.From, from)
	if err != nil {
		return nil, err
	}
	if to != nil {
		s.drop(c.To, to)
	}
	for _, m := range moves {
		s.move(m.path, c.To+strings.TrimPrefix(m.path, c.From), m.file)
	}
	return &command.LockResult{Version: s.state.Revision}, nil
}

type moved struct {
	path string
	file *command.LockFile
}

// subtree lists path and everything below it, parents first, if it is small enough to move at once.
func (s *stage) subtree(op, path string, f *command.LockFile) ([]moved, error) {
	all, total := []moved{{path, f}}, f.Size
	for i := 0; i < len(all); i++ {
		if !all[i].file.Dir {
			continue
		}
		prefix := childPrefix(all[i].path)
		for k, v := range s.Scan(prefixed(prefix)) {
			child := &command.LockFile{}
			decode(v, child)
			if child.Ephemeral && !child.Dir {
				return nil, dc.Errorf(dc.Busy, op, path, "it holds ephemeral files, which cannot be moved while they are held open")
			}
			all = append(all, moved{join(all[i].path, string(k[len(prefix):])), child})
			total += child.Size
			if len(all) > dc.MaxLockMove || total > dc.MaxLockTxnBytes {
				return nil, dc.Errorf(dc.TooLarge, op, path, "one rename moves at most %d files (MaxLockMove) of %d KiB in all (MaxLockTxnBytes)",
					dc.MaxLockMove, dc.MaxLockTxnBytes/dc.KiB)
			}
		}
	}
	return all, nil
}

func (s *stage) move(from, to string, f *command.LockFile) {
	gone, kind := command.LockEvent_KIND_DELETE, command.LockEvent_KIND_PUT
	s.delete(fileKey(from))
	if f.Dir {
		gone, kind = command.LockEvent_KIND_RMDIR, command.LockEvent_KIND_MKDIR
	} else {
		value, _ := s.Get(pathKey(rowValue, from))
		f.Value = append([]byte(nil), value...)
		s.delete(pathKey(rowValue, from))
		s.set(pathKey(rowValue, to), f.Value)
	}
	s.revise(&command.LockEvent{Kind: gone, Path: from})
	mtime := f.MtimeMs
	s.change(kind, to, f)
	f.MtimeMs = mtime
	s.store(to, f)
}

func (s *stage) setAttr(c *command.LockSetAttr) (*command.LockResult, error) {
	const op = "lock.setattr"
	if err := CheckPath(op, c.Path); err != nil {
		return nil, err
	}
	f := s.file(c.Path)
	if f == nil {
		return nil, dc.Errorf(dc.NotFound, op, c.Path, "")
	}
	if c.Ephemeral != nil {
		switch {
		case !f.Dir:
			return nil, dc.Errorf(dc.NotDir, op, c.Path, "only a directory can be marked ephemeral")
		case f.Ephemeral != *c.Ephemeral && s.hasChildren(c.Path):
			return nil, dc.Errorf(dc.NotEmpty, op, c.Path, "mark a directory ephemeral (or not) while it is empty")
		}
		f.Ephemeral = *c.Ephemeral
	}
	if c.Mode != nil {
		f.Mode = *c.Mode
	}
	if c.Uid != nil {
		f.Uid = *c.Uid
	}
	if c.Gid != nil {
		f.Gid = *c.Gid
	}
	version := f.Version
	s.revise(&command.LockEvent{Kind: command.LockEvent_KIND_ATTR, Path: c.Path, File: clone(f)})
	f.Version = version // attributes are not the value: a compare-and-set goes on
	if c.MtimeMs != nil {
		f.MtimeMs = *c.MtimeMs
	}
	s.store(c.Path, f)
	return &command.LockResult{Version: version}, nil
}
