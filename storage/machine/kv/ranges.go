package kv

import (
	"bytes"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// A Range is a part of a table: the rows from Start on and before End; nil is no bound.
type Range struct {
	ID, Epoch  uint64
	Start, End []byte
	// Rows and Bytes are what it holds, about: a split divides them by a count made a moment before.
	Rows, Bytes uint64
}

// Ranges gives a table's ranges in key order; at least one.
func Ranges(r storage.Reader, table uint64) []Range {
	t := loadTable(r, table)
	if t.Ranges == 0 {
		return []Range{{ID: 1, Epoch: 1, Rows: t.Rows, Bytes: t.Bytes}}
	}
	var out []Range
	for _, v := range r.Scan(under(rangeKey(table, nil))) {
		g := &command.KVRange{}
		decode(v, g)
		if n := len(out); n > 0 {
			out[n-1].End = g.Start
		}
		out = append(out, Range{ID: g.Id, Epoch: g.Epoch, Start: g.Start, Rows: uint64(max(g.Rows, 0)), Bytes: uint64(max(g.Bytes, 0))})
	}
	return out
}

// RangeOf gives the range that a key is in, or would be.
func RangeOf(r storage.Reader, table uint64, key []byte) Range {
	var in Range
	for _, g := range Ranges(r, table) {
		if bytes.Compare(g.Start, firstSegment(key)) <= 0 {
			in = g
		}
	}
	return in
}

// rangeKey is where the range that starts at a row is kept; nil is the first one's start, and the prefix of all.
func rangeKey(table uint64, start []byte) []byte {
	b := tuple.AppendUint([]byte{rowRange}, table)
	if len(start) > 0 {
		b = tuple.AppendString(b, start)
	}
	return b
}

func firstSegment(key []byte) []byte {
	first, _, _ := bytes.Cut(key, []byte{'/'})
	return first
}

// rangeOf reads the record of the range that a key is in, of a table that was split.
func rangeOf(r storage.Reader, table uint64, key []byte) *command.KVRange {
	g := &command.KVRange{}
	end := append(rangeKey(table, firstSegment(key)), 0)
	for _, v := range r.Scan(storage.Span{Start: rangeKey(table, nil), End: end, Reverse: true}) {
		decode(v, g)
		return g
	}
	panic("kv: a table that was split has no first range")
}

// CheckBoundary tells what is wrong with a key to split at.
func CheckBoundary(op string, key []byte) error {
	if err := CheckKey(op, key); err != nil {
		return err
	}
	if bytes.IndexByte(key, '/') >= 0 {
		return dc.Errorf(dc.Invalid, op, shorten(key), "a row and its columns stay in one range: split at a row, like %s", shorten(firstSegment(key)))
	}
	return nil
}

// split divides a range. Rows stay where they are, and no revision is taken: no row changes.
func split(tx storage.Tx, c *command.KVSplit) (*command.KVResult, error) {
	const op = "kv.split"
	t := loadTable(tx, c.Table)
	if t.Dropped {
		return nil, dropped(op)
	}
	if err := CheckBoundary(op, c.Key); err != nil {
		return nil, err
	}
	if t.Ranges == 0 {
		t.Ranges, t.LastRange = 1, 1
		first := &command.KVRange{Id: 1, Epoch: 1, Rows: int64(t.Rows), Bytes: int64(t.Bytes)}
		tx.Set(rangeKey(c.Table, nil), encode(first))
	}
	left := rangeOf(tx, c.Table, c.Key)
	switch {
	case bytes.Equal(left.Start, c.Key):
		return nil, dc.Errorf(dc.Exists, op, shorten(c.Key), "a range begins there already")
	case t.Ranges >= dc.MaxKVRanges:
		return nil, dc.Errorf(dc.TooLarge, op, shorten(c.Key), "a table has at most %d ranges (MaxKVRanges)", dc.MaxKVRanges)
	}
	t.Ranges++
	t.LastRange++
	left.Epoch++
	right := &command.KVRange{
		Id: t.LastRange, Epoch: left.Epoch, Start: c.Key,
		Rows: min(int64(c.Rows), max(left.Rows, 0)), Bytes: min(int64(c.Bytes), max(left.Bytes, 0)),
	}
	left.Rows -= right.Rows
	left.Bytes -= right.Bytes
	tx.Set(rangeKey(c.Table, left.Start), encode(left))
	tx.Set(rangeKey(c.Table, right.Start), encode(right))
	tx.Set(tableKey(c.Table), encode(t))
	return &command.KVResult{}, nil
}

// forgetRanges removes what is kept of a swept table's ranges.
func forgetRanges(tx storage.Tx, table uint64, t *command.KVTable) {
	span := under(rangeKey(table, nil))
	span.KeysOnly = true
	var keys [][]byte
	for k := range tx.Scan(span) {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		tx.Delete(k)
	}
	t.Ranges = 0
}

// count keeps the totals of the table and of the range that a row is in.
func (s *stage) count(key []byte, rows, size int64) {
	s.table.Rows += uint64(rows)
	s.table.Bytes += uint64(size)
	if s.table.Ranges == 0 {
		return
	}
	g := rangeOf(s.tx, s.id, key)
	stored := string(rangeKey(s.id, g.Start))
	if staged, ok := s.ranges[stored]; ok {
		g = staged
	} else {
		if s.ranges == nil {
			s.ranges = map[string]*command.KVRange{}
		}
		s.ranges[stored] = g
	}
	g.Rows += rows
	g.Bytes += size
}

// oneRange makes sure that a transaction lies in one range, wherever its ranges are now: ranges may come to live in different groups.
func (s *stage) oneRange(c *command.KVTxn) error {
	if s.table.Ranges == 0 {
		return nil
	}
	var first []byte
	var in uint64
	check := func(key []byte) error {
		if err := CheckKey("kv.txn", key); err != nil {
			return err
		}
		id := rangeOf(s.tx, s.id, key).Id
		if in == 0 {
			first, in = key, id
		}
		if id != in {
			return dc.Errorf(dc.CrossDevice, "kv.txn", shorten(key), "a transaction lies in one range of its table, and %s is in another one (see .dc/ranges)", shorten(first))
		}
		return nil
	}
	for _, x := range c.Conditions {
		if err := check(x.Key); err != nil {
			return err
		}
	}
	for _, actions := range [][]*command.KVAction{c.Then, c.Otherwise} {
		for _, a := range actions {
			if err := check(a.Key); err != nil {
				return err
			}
		}
	}
	return nil
}
