package storage

import (
	"bytes"
	"fmt"
	"iter"

	"missingos/srv/dc"
)

// Limits of one row, for machines: a row over them is a broken invariant and panics.
const (
	MaxRowKeyBytes   = 16 * dc.KiB
	MaxRowValueBytes = 2*dc.MiB + 64*dc.KiB
)

// shardKeys is the first byte of the keys that belong to the shard.
const shardKeys = '!'

// An overlay is what entries have written but not yet committed, over the state they started from. All reads of the
// base are at one version, so what an earlier, interrupted run of the same entries left behind above that version is never seen.
type overlay struct {
	base  Reader
	rows  rowMap
	bytes int // of keys and values, overwritten ones included
}

func (o *overlay) get(key []byte) ([]byte, bool) {
	if r, ok := o.rows.lookup(key); ok {
		if r.dropped {
			return nil, false
		}
		return bytes.Clone(r.value), true
	}
	return o.base.Get(key)
}

func (o *overlay) set(key, value []byte) {
	o.bytes += len(key) + len(value)
	own := make([]byte, len(key)+len(value))
	copy(own, key)
	copy(own[len(key):], value)
	o.rows.put(row{key: own[:len(key):len(key)], value: own[len(key):]})
}

func (o *overlay) drop(key []byte) {
	o.bytes += len(key)
	o.rows.put(row{key: bytes.Clone(key), dropped: true})
}

// scan merges the written rows into the base's. A machine may set and delete rows while it scans; what it does beyond the
// current row is seen, except that rows of the base are those of the version the entries started from.
func (o *overlay) scan(s Span, yield func(key, value []byte) bool) {
	emit := func(r row) bool {
		switch {
		case r.dropped:
			return true
		case s.KeysOnly:
			return yield(r.key, nil)
		}
		return yield(r.key, r.value)
	}
	gap := s // from the last row of the base to the next
	var last, next []byte
	for key, value := range o.base.Scan(s) {
		if s.Reverse {
			next = append(append(next[:0], key...), 0)
			gap.Start = next
		} else {
			gap.End = key
		}
		if !o.rows.each(gap, emit) {
			return
		}
		more := false
		if r, ok := o.rows.lookup(key); ok {
			more = emit(r)
		} else {
			more = yield(key, value)
		}
		if !more {
			return
		}
		if last = append(last[:0], key...); s.Reverse {
			gap.End = last
		} else {
			last = append(last, 0)
			gap.Start = last
		}
	}
	if s.Reverse {
		gap.Start = s.Start
	} else {
		gap.End = s.End
	}
	o.rows.each(gap, emit)
}

// tx is the Tx of one command.
type tx struct {
	over   *overlay
	clock  int64
	index  dc.Index
	events []any
	wrote  bool
}

var _ Tx = (*tx)(nil)

func (t *tx) Get(key []byte) ([]byte, bool) {
	checkKey(key)
	return t.over.get(key)
}

func (t *tx) Scan(s Span) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		t.over.scan(s, func(key, value []byte) bool {
			return key[0] == shardKeys || yield(key, value)
		})
	}
}

func (t *tx) Set(key, value []byte) {
	checkKey(key)
	if len(value) > MaxRowValueBytes {
		panic(fmt.Sprintf("storage: value of %d bytes for key %q exceeds the limit of %d (MaxRowValueBytes)", len(value), key, MaxRowValueBytes))
	}
	t.wrote = true
	t.over.set(key, value)
}

func (t *tx) Delete(key []byte) {
	checkKey(key)
	t.wrote = true
	t.over.drop(key)
}

func (t *tx) Clock() int64    { return t.clock }
func (t *tx) Index() dc.Index { return t.index }

func (t *tx) Emit(event any) {
	t.wrote = true
	t.events = append(t.events, event)
}

func checkKey(key []byte) {
	switch {
	case len(key) == 0:
		panic("storage: empty key")
	case key[0] == shardKeys:
		panic(fmt.Sprintf("storage: key %q is in the shard's own key space", key))
	case len(key) > MaxRowKeyBytes:
		panic(fmt.Sprintf("storage: key of %d bytes exceeds the limit of %d (MaxRowKeyBytes)", len(key), MaxRowKeyBytes))
	}
}
