package lock

import (
	"bytes"
	"encoding/binary"
	"iter"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// promoteSteps bounds how many waiters one command lets in; a longer queue goes on with LockAdvance.
const promoteSteps = 64

// A stage gathers what one command will write, so that a command which is refused half way has written nothing.
type stage struct {
	tx    storage.Tx
	rows  map[string][]byte // nil: deleted
	order []string          // keys of rows as first written

	state   *command.LockState
	before  []byte
	history []*command.LockHistory       // one a revision of this command
	open    bool                         // the last of history still takes events
	past    bool                         // the command's version notes what files were before
	noted   map[string]*command.LockFile // what files are after their last event of this command
	events  []any
	steps   int // left of promoteSteps
}

func newStage(tx storage.Tx) *stage {
	s := &stage{tx: tx, rows: map[string][]byte{}, state: &command.LockState{}, steps: promoteSteps}
	if b, ok := tx.Get(stateKey); ok {
		decode(b, s.state)
		s.before = append([]byte{}, b...) // not nil, even if empty
	} else {
		s.state.LockDelayMs = uint32(dc.LockDelay.Milliseconds())
	}
	return s
}

func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("lock: " + err.Error())
	}
	return b
}

func decode(b []byte, m proto.Message) {
	if err := proto.Unmarshal(b, m); err != nil {
		panic("lock: stored record: " + err.Error())
	}
}

// Get reads the state as the command has it so far.
func (s *stage) Get(key []byte) ([]byte, bool) {
	if v, ok := s.rows[string(key)]; ok {
		return v, v != nil
	}
	return s.tx.Get(key)
}

// Scan yields rows of the state before the command, with its changes to and deletions of them; rows it added are not seen.
func (s *stage) Scan(span storage.Span) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for k, v := range s.tx.Scan(span) {
			if changed, ok := s.rows[string(k)]; ok {
				if changed == nil {
					continue
				}
				v = changed
			}
			if !yield(k, v) {
				return
			}
		}
	}
}

func (s *stage) set(key, value []byte) {
	k := string(key)
	if _, ok := s.rows[k]; !ok {
		s.order = append(s.order, k)
	}
	if value == nil {
		value = []byte{}
	}
	s.rows[k] = value
}

func (s *stage) put(key []byte, m proto.Message) { s.set(key, encode(m)) }

func (s *stage) delete(key []byte) {
	s.set(key, nil)
	s.rows[string(key)] = nil
}

// revise records an event under the revision that is open, beginning one if none is.
func (s *stage) revise(ev *command.LockEvent) uint64 {
	if ofFile(ev) {
		s.note(ev)
	}
	if !s.open {
		s.state.Revision++
		s.history = append(s.history, &command.LockHistory{Revision: s.state.Revision, ClockMs: s.tx.Clock()})
		s.open = true
	}
	h := s.history[len(s.history)-1]
	h.Events = append(h.Events, ev)
	return h.Revision
}

// begin gives the revision that the next event will have.
func (s *stage) begin() uint64 {
	if s.open {
		return s.state.Revision
	}
	return s.state.Revision + 1
}

// settle closes the open revision: the next event begins another.
func (s *stage) settle() { s.open = false }

func (s *stage) emit(ev any) { s.events = append(s.events, ev) }

// flush writes everything; after it the command has happened.
func (s *stage) flush() {
	for _, h := range s.history {
		b := encode(h)
		s.state.HistoryBytes += uint64(len(b))
		s.tx.Set(numberKey(rowHistory, h.Revision), b)
		s.index(h)
	}
	if b := encode(s.state); s.before == nil || !bytes.Equal(b, s.before) {
		s.tx.Set(stateKey, b)
	}
	for _, k := range s.order {
		if v := s.rows[k]; v != nil {
			s.tx.Set([]byte(k), v)
		} else {
			s.tx.Delete([]byte(k))
		}
	}
	for _, h := range s.history {
		s.tx.Emit(h)
	}
	for _, ev := range s.events {
		s.tx.Emit(ev)
	}
}

func prefixed(prefix []byte) storage.Span { return storage.Span{Start: prefix, End: after(prefix)} }

func number(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

func bytesOf(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
