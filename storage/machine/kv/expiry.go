package kv

import (
	"bytes"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// Expiring is emitted when a row gets a time to live.
type Expiring struct{ AtMs int64 }

// expireRows bounds the rows that one command removes.
const expireRows = 256

// expiryKey orders rows that have a time to live by its end.
func expiryKey(atMs int64, table uint64, key []byte) []byte {
	b := tuple.AppendUint([]byte{rowExpiry}, uint64(atMs))
	return append(tuple.AppendUint(b, table), key...)
}

// takeExpiry is expiryKey's inverse.
func takeExpiry(k []byte) (atMs int64, table uint64, key []byte) {
	at, rest, _ := tuple.TakeUint(k[1:])
	table, key, _ = tuple.TakeUint(rest)
	return int64(at), table, key
}

// reindex notes when a row ends that becomes another one; either may be nil.
func (s *stage) reindex(key []byte, old, r *command.KVRow) {
	if old.GetExpiresMs() == r.GetExpiresMs() {
		return
	}
	if at := old.GetExpiresMs(); at != 0 {
		s.expiries = append(s.expiries, expiry{key: expiryKey(at, s.id, key)})
	}
	if at := r.GetExpiresMs(); at != 0 {
		s.expiries = append(s.expiries, expiry{key: expiryKey(at, s.id, key), atMs: at})
	}
}

// An expiry is a change of the index: a row's end, or none any more.
type expiry struct {
	key  []byte
	atMs int64
}

func (s *stage) flushExpiries() {
	next := int64(0)
	for _, e := range s.expiries {
		if e.atMs == 0 {
			s.tx.Delete(e.key)
			continue
		}
		s.tx.Set(e.key, nil)
		if next == 0 || e.atMs < next {
			next = e.atMs
		}
	}
	if next != 0 {
		s.tx.Emit(Expiring{AtMs: next})
	}
}

// end is when a row that is written now is to go; 0: never.
func (s *stage) end(ttlMs int64) int64 {
	if ttlMs == 0 {
		return 0
	}
	return s.tx.Clock() + ttlMs
}

// CheckTTL tells whether rows may live so long.
func CheckTTL(op string, ttlMs int64) error {
	if ttlMs < 0 || ttlMs > dc.MaxKVTTL.Milliseconds() {
		return dc.Errorf(dc.Invalid, op, "", "a time to live is up to %s (MaxKVTTL), or 0: for ever", dc.MaxKVTTL)
	}
	return nil
}

func (s *stage) setTable(c *command.KVSetTable) (*command.KVResult, error) {
	if c.TtlMs != nil {
		if err := CheckTTL("kv.ctl", *c.TtlMs); err != nil {
			return nil, err
		}
		s.table.TtlMs = *c.TtlMs
	}
	s.nextRevision()
	return &command.KVResult{}, nil
}

// expire removes rows whose time to live is over by the log's clock, each under a revision of its own.
func expire(tx storage.Tx) (*command.KVResult, error) {
	res := &command.KVResult{}
	var due [][]byte
	for k := range tx.Scan(storage.Span{Start: []byte{rowExpiry}, End: expiryKey(tx.Clock()+1, 0, nil), KeysOnly: true}) {
		if len(due) == expireRows {
			res.More = true
			break
		}
		due = append(due, bytes.Clone(k))
	}
	for _, k := range due {
		at, table, key := takeExpiry(k)
		s, err := newStage(tx, "kv.expire", table)
		if err != nil { // dropped: the sweep does not know of these
			tx.Delete(k)
			continue
		}
		if r := s.row(key); r.GetExpiresMs() != at {
			panic("kv: the index of times to live does not fit its rows")
		}
		s.nextRevision()
		s.set(key, nil)
		s.keepParent(key)
		s.flush()
		res.Revision = s.state.Revision
	}
	return res, nil
}

// NextExpiry is when the next row is to go, by the log's clock; 0: none.
func NextExpiry(r storage.Reader) (atMs int64) {
	for k := range r.Scan(storage.Span{Start: []byte{rowExpiry}, End: []byte{rowExpiry + 1}, KeysOnly: true}) {
		atMs, _, _ = takeExpiry(k)
		break
	}
	return atMs
}
