package kv

import (
	"bytes"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// A stage collects what one command changes; nothing is written before the whole command is known to succeed.
type stage struct {
	tx       storage.Tx
	id       uint64
	table    *command.KVTable
	state    *command.KVState
	changed  bool
	rows     map[string]*command.KVRow // by stored key; nil is a removal
	order    []string
	expiries []expiry
	ranges   map[string]*command.KVRange // whose totals change, by stored key
}

// newStage opens a table; dc.NotFound if it was dropped.
func newStage(tx storage.Tx, op string, table uint64) (*stage, error) {
	s := &stage{tx: tx, id: table, table: loadTable(tx, table), state: loadState(tx), rows: map[string]*command.KVRow{}}
	if s.table.Dropped {
		return nil, dropped(op)
	}
	return s, nil
}

func dropped(op string) error { return dc.Errorf(dc.NotFound, op, "", "the table was dropped") }

func loadTable(r storage.Reader, table uint64) *command.KVTable {
	t := &command.KVTable{}
	load(r, tableKey(table), t)
	return t
}

func loadState(r storage.Reader) *command.KVState {
	st := &command.KVState{}
	load(r, stateKey, st)
	return st
}

func load(r storage.Reader, key []byte, m proto.Message) bool {
	value, ok := r.Get(key)
	if ok {
		decode(value, m)
	}
	return ok
}

func decode(value []byte, m proto.Message) {
	if err := proto.Unmarshal(value, m); err != nil {
		panic("kv: record does not decode: " + err.Error())
	}
}

func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("kv: record does not encode: " + err.Error())
	}
	return b
}

// row reads a row or directory mark as the command has left it so far; nil if there is none.
func (s *stage) row(key []byte) *command.KVRow {
	stored := rowKey(s.id, key)
	if r, ok := s.rows[string(stored)]; ok {
		return r
	}
	r := &command.KVRow{}
	if !load(s.tx, stored, r) {
		return nil
	}
	return r
}

// nextRevision is the revision of this command's changes.
func (s *stage) nextRevision() uint64 {
	if !s.changed {
		s.changed = true
		s.state.Revision++
	}
	return s.state.Revision
}

// set stages a row (nil: its removal) and keeps the table's totals.
func (s *stage) set(key []byte, r *command.KVRow) {
	stored := string(rowKey(s.id, key))
	old := s.row(key)
	s.reindex(key, old, r)
	if old != nil && !old.Dir {
		s.count(key, -1, -int64(len(key)+len(old.Value)))
	}
	if r != nil && !r.Dir {
		s.count(key, 1, int64(len(key)+len(r.Value)))
	}
	if _, ok := s.rows[stored]; !ok {
		s.order = append(s.order, stored)
	}
	s.rows[stored] = r
}

// flush writes what is staged.
func (s *stage) flush() {
	if !s.changed {
		return
	}
	for _, k := range s.order {
		if r := s.rows[k]; r != nil {
			s.tx.Set([]byte(k), encode(r))
		} else {
			s.tx.Delete([]byte(k))
		}
	}
	s.flushExpiries()
	for _, k := range slices.Sorted(maps.Keys(s.ranges)) {
		s.tx.Set([]byte(k), encode(s.ranges[k]))
	}
	s.table.MtimeMs = s.tx.Clock()
	s.tx.Set(tableKey(s.id), encode(s.table))
	s.tx.Set(stateKey, encode(s.state))
}

// below tells whether there are rows below a key that this command leaves there.
func (s *stage) below(key []byte) bool {
	prefix := rowKey(s.id, key)
	for k := range s.tx.Scan(storage.Span{Start: under(prefix).Start, End: under(prefix).End, KeysOnly: true}) {
		if len(k) == len(prefix) {
			continue
		}
		if r, staged := s.rows[string(k)]; !staged || r != nil {
			return true
		}
	}
	return slices.ContainsFunc(s.order, func(k string) bool {
		return s.rows[k] != nil && len(k) > len(prefix) && bytes.HasPrefix([]byte(k), prefix)
	})
}

// isDir tells whether key is a directory: it was made one, or has rows below.
func (s *stage) isDir(key []byte) bool {
	if r := s.row(key); r != nil {
		return r.Dir
	}
	return s.below(key)
}

// checkParents makes sure that nothing on the way to key is a row.
func (s *stage) checkParents(op string, key []byte) error {
	for i, c := range key {
		if c != '/' {
			continue
		}
		if r := s.row(key[:i]); r != nil && !r.Dir {
			return dc.Errorf(dc.NotDir, op, shorten(key), "%s is a row, so nothing can be below it", shorten(key[:i]))
		}
	}
	return nil
}

// place makes sure that a row can stand at key, and gives the one that does, if any.
func (s *stage) place(op string, key []byte) (*command.KVRow, error) {
	if err := CheckKey(op, key); err != nil {
		return nil, err
	}
	old := s.row(key)
	if old != nil && !old.Dir {
		return old, nil // its parents are fine, and nothing is below it
	}
	if old != nil || s.below(key) {
		return nil, dc.Errorf(dc.IsDir, op, shorten(key), "there are columns below it, or it was made a directory")
	}
	return nil, s.checkParents(op, key)
}

// write stages a value for key on top of old. One that replaces the old value lives as long as the table says; a part of it that changes leaves its
// row's end as it is.
func (s *stage) write(key, value []byte, old *command.KVRow, replaces bool, owner *command.KVOwner) *command.KVRow {
	r := &command.KVRow{Value: value, Revision: s.nextRevision(), MtimeMs: s.tx.Clock()}
	if old != nil {
		r.Created, r.Mode, r.Uid, r.Gid = old.Created, old.Mode, old.Uid, old.Gid
	} else {
		r.Created, r.Mode, r.Uid, r.Gid = r.Revision, owner.GetMode(), owner.GetUid(), owner.GetGid()
	}
	if r.ExpiresMs = old.GetExpiresMs(); replaces || old == nil {
		r.ExpiresMs = s.end(s.table.TtlMs)
	}
	s.set(key, r)
	return r
}
