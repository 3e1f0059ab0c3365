package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/dgraph-io/badger/v4"

	"missingos/srv/dc"
)

// reader reads a generation at one version.
type reader struct{ txn *badger.Txn }

func (g *generation) reader(at dc.Index) reader {
	return reader{g.db.NewTransactionAt(uint64(at), false)}
}

func (r reader) close() { r.txn.Discard() }

func (r reader) Get(key []byte) ([]byte, bool) {
	item, err := r.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, false
	}
	if err != nil {
		panic(&Fault{fmt.Errorf("read key %q: %w", key, err)})
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		panic(&Fault{fmt.Errorf("read value of key %q: %w", key, err)})
	}
	if item.UserMeta() == largeValue {
		value = r.assemble(key, value)
	}
	return value, true
}

func (r reader) assemble(key, head []byte) []byte {
	if len(head) != 4 {
		panic(&Fault{fmt.Errorf("large value of key %q has a head of %d bytes", key, len(head))})
	}
	n := int(binary.BigEndian.Uint32(head))
	value := make([]byte, 0, n*chunkBytes)
	for i := range n {
		item, err := r.txn.Get(chunkKey(key, i))
		if err == nil {
			err = item.Value(func(v []byte) error { value = append(value, v...); return nil })
		}
		if err != nil {
			panic(&Fault{fmt.Errorf("read chunk %d of %d of key %q: %w", i, n, key, err)})
		}
	}
	return value
}

func (r reader) Scan(s Span) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		r.items(s, func(item *badger.Item) bool {
			key := item.Key()
			if s.KeysOnly {
				return yield(key, nil)
			}
			more := false
			err := item.Value(func(value []byte) error {
				if item.UserMeta() == largeValue {
					value = r.assemble(key, value)
				}
				more = yield(key, value)
				return nil
			})
			if err != nil {
				panic(&Fault{fmt.Errorf("read value of key %q: %w", key, err)})
			}
			return more
		})
	}
}

// items yields Badger's items of a span.
func (r reader) items(s Span, yield func(*badger.Item) bool) {
	it := r.txn.NewIterator(badger.IteratorOptions{Reverse: s.Reverse, Prefix: sharedPrefix(s)})
	defer it.Close()
	switch {
	case !s.Reverse:
		for it.Seek(s.Start); it.Valid(); it.Next() {
			if item := it.Item(); s.End != nil && bytes.Compare(item.Key(), s.End) >= 0 || !yield(item) {
				return
			}
		}
		return
	case s.End == nil:
		it.Rewind()
	default:
		it.Seek(s.End)
	}
	for ; it.Valid(); it.Next() {
		item := it.Item()
		if s.End != nil && bytes.Compare(item.Key(), s.End) >= 0 {
			continue
		}
		if bytes.Compare(item.Key(), s.Start) < 0 || !yield(item) {
			return
		}
	}
}

// sharedPrefix is a prefix of all keys of the span, with which Badger leaves out tables that cannot matter. A reverse scan starts at
// its End, which must have the prefix too.
func sharedPrefix(s Span) []byte {
	n := 0
	for n < min(len(s.Start), len(s.End)) && s.Start[n] == s.End[n] {
		n++
	}
	return s.Start[:n]
}
