package kv

import (
	"bytes"
	"iter"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// An Entry is a name in a directory, or a row of a scan.
type Entry struct {
	Key []byte // a name, or the whole key
	Row *command.KVRow
}

// Open checks that a table was not dropped.
func Open(r storage.Reader, op string, table uint64) error {
	if loadTable(r, table).Dropped {
		return dropped(op)
	}
	return nil
}

// Row reads a row or directory; nil if there is none. A directory that exists only by the rows below it has no owner and no times.
func Row(r storage.Reader, table uint64, key []byte) *command.KVRow {
	row := &command.KVRow{}
	if load(r, rowKey(table, key), row) {
		row.Size = uint64(len(row.Value))
		return row
	}
	span := under(rowKey(table, key))
	span.KeysOnly = true
	for range r.Scan(span) {
		return impliedDir()
	}
	return nil
}

func impliedDir() *command.KVRow { return &command.KVRow{Dir: true, Mode: 0o755} }

// List gives up to limit children of a directory ("" for the table) in name order, strictly after a name; values are left out.
func List(r storage.Reader, table uint64, dir, after []byte, limit int) []Entry {
	prefix := dirKey(table, dir)
	start := prefix
	if len(after) > 0 {
		start = tuple.PrefixEnd(tuple.AppendString(bytes.Clone(prefix), after))
	} else if len(dir) > 0 {
		start = append(bytes.Clone(prefix), 0) // past the directory's own mark: the segments below begin with some byte
	}
	var out []Entry
	for len(out) < limit {
		e, next, ok := child(r, prefix, start)
		if !ok {
			break
		}
		out = append(out, e)
		start = next
	}
	return out
}

// child gives the first child at or after start, and where the one after it begins.
func child(r storage.Reader, prefix, start []byte) (e Entry, next []byte, ok bool) {
	end := tuple.PrefixEnd(prefix)
	for k, v := range r.Scan(storage.Span{Start: start, End: end}) {
		name, rest, fine := tuple.TakeString(k[len(prefix):])
		if !fine {
			panic("kv: a row's key does not decode")
		}
		e = Entry{Key: name, Row: impliedDir()}
		if len(rest) == 0 {
			e.Row = &command.KVRow{}
			decode(v, e.Row)
			e.Row.Size, e.Row.Value = uint64(len(e.Row.Value)), nil
		}
		return e, tuple.PrefixEnd(k[:len(k)-len(rest)]), true
	}
	return Entry{}, nil, false
}

// A ScanSpec says which rows to scan; empty bounds are none.
type ScanSpec struct {
	From, To, Prefix []byte
	Reverse          bool
}

// Scan yields the rows (not directories) of a table in key order.
func Scan(r storage.Reader, table uint64, s ScanSpec) iter.Seq[Entry] {
	span := under(partialKey(table, s.Prefix))
	span.Reverse = s.Reverse
	if len(s.From) > 0 {
		if from := rowKey(table, s.From); bytes.Compare(from, span.Start) > 0 {
			span.Start = from
		}
	}
	if len(s.To) > 0 {
		if to := rowKey(table, s.To); span.End == nil || bytes.Compare(to, span.End) < 0 {
			span.End = to
		}
	}
	return func(yield func(Entry) bool) {
		if bytes.Compare(span.Start, span.End) >= 0 {
			return
		}
		for k, v := range r.Scan(span) {
			row := &command.KVRow{}
			decode(v, row)
			if row.Dir {
				continue
			}
			if !yield(Entry{Key: pathOf(k), Row: row}) {
				return
			}
		}
	}
}

// Totals reads a table's record and the group's revision.
func Totals(r storage.Reader, table uint64) (*command.KVTable, dc.Revision) {
	return loadTable(r, table), dc.Revision(loadState(r).Revision)
}

// Unswept lists up to limit dropped tables that still have rows, after a table id.
func Unswept(r storage.Reader, after uint64, limit int) []uint64 {
	var out []uint64
	for k, v := range r.Scan(storage.Span{Start: tableKey(after + 1), End: tuple.PrefixEnd([]byte{rowTable})}) {
		t := &command.KVTable{}
		decode(v, t)
		if !t.Dropped || t.Swept {
			continue
		}
		id, _, _ := tuple.TakeUint(k[1:])
		if out = append(out, id); len(out) == limit {
			break
		}
	}
	return out
}
