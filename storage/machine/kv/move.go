package kv

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage/command"
)

func (s *stage) rename(c *command.KVRename) (*command.KVResult, error) {
	const op = "kv.rename"
	from := s.row(c.From)
	if from == nil || from.Dir {
		if s.isDir(c.From) {
			return s.renameDir(c)
		}
		return nil, dc.Errorf(dc.NotFound, op, shorten(c.From), "")
	}
	to, err := s.place(op, c.To)
	if err != nil {
		return nil, err
	}
	if to != nil && c.NoReplace {
		return nil, dc.Errorf(dc.Exists, op, shorten(c.To), "")
	}
	if bytes.Equal(c.From, c.To) {
		return &command.KVResult{Row: without(from)}, nil
	}
	if bytes.HasPrefix(c.To, append(bytes.Clone(c.From), '/')) {
		return nil, dc.Errorf(dc.NotDir, op, shorten(c.To), "%s is a row, so nothing can be below it", shorten(c.From))
	}
	r := proto.CloneOf(from)
	r.Revision, r.Created = s.nextRevision(), s.nextRevision()
	s.set(c.From, nil)
	s.set(c.To, r)
	s.keepParent(c.From)
	return &command.KVResult{Row: without(r)}, nil
}

// renameDir moves a directory and all below it, in place of an empty one or of none.
func (s *stage) renameDir(c *command.KVRename) (*command.KVResult, error) {
	const op = "kv.rename"
	if err := CheckKey(op, c.To); err != nil {
		return nil, err
	}
	if err := s.checkParents(op, c.To); err != nil {
		return nil, err
	}
	old := s.row(c.To)
	switch {
	case bytes.Equal(c.From, c.To):
		return &command.KVResult{}, nil
	case bytes.HasPrefix(c.To, append(bytes.Clone(c.From), '/')):
		return nil, dc.Errorf(dc.Invalid, op, shorten(c.To), "a directory cannot move into itself")
	case c.NoReplace && (old != nil || s.below(c.To)):
		return nil, dc.Errorf(dc.Exists, op, shorten(c.To), "")
	case old != nil && !old.Dir:
		return nil, dc.Errorf(dc.NotDir, op, shorten(c.To), "it is a row, and %s a directory", shorten(c.From))
	case s.below(c.To):
		return nil, dc.Errorf(dc.NotEmpty, op, shorten(c.To), "there are columns below it")
	}
	rows, err := s.subtree(op, c.From)
	if err != nil {
		return nil, err
	}
	rev := s.nextRevision()
	for _, e := range rows {
		to := append(bytes.Clone(c.To), e.Key[len(c.From):]...)
		if err := CheckKey(op, to); err != nil {
			return nil, err
		}
		e.Row.Revision, e.Row.Created = rev, rev
		s.set(e.Key, nil)
		s.set(to, e.Row)
	}
	s.keepParent(c.From)
	return &command.KVResult{}, nil
}

// subtree reads a directory's mark and all that is below it, up to the limits of a move.
func (s *stage) subtree(op string, dir []byte) ([]Entry, error) {
	var out []Entry
	size := 0
	for k, v := range s.tx.Scan(under(rowKey(s.id, dir))) {
		if size += len(k) + len(v); len(out) == dc.MaxKVMove || size > dc.MaxCommandBytes {
			return nil, dc.Errorf(dc.TooLarge, op, shorten(dir), "one rename moves at most %d rows (MaxKVMove) of %d MiB in all (MaxCommandBytes); copy and remove it",
				dc.MaxKVMove, dc.MaxCommandBytes/dc.MiB)
		}
		e := Entry{Key: pathOf(k), Row: &command.KVRow{}}
		decode(v, e.Row)
		out = append(out, e)
	}
	return out, nil
}
