package lock

import (
	"iter"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// memory is a shard in memory: rows in a map, a clock that the test moves, events gathered.
type memory struct {
	rows   map[string][]byte
	clock  int64
	events []any
	writes int // of the command under way
}

func newMemory() *memory { return &memory{rows: map[string][]byte{}, clock: 1_000_000} }

func (m *memory) Get(key []byte) ([]byte, bool) {
	v, ok := m.rows[string(key)]
	return slices.Clone(v), ok
}

func (m *memory) Scan(s storage.Span) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(m.rows)) {
			if k < string(s.Start) || s.End != nil && k >= string(s.End) {
				continue
			}
			if !yield([]byte(k), m.rows[k]) {
				return
			}
		}
	}
}
func (m *memory) Set(k, v []byte) { m.rows[string(k)] = slices.Clone(v); m.writes++ }
func (m *memory) Delete(k []byte) { delete(m.rows, string(k)); m.writes++ }
func (m *memory) Clock() int64    { return m.clock }
func (m *memory) Index() dc.Index { return 1 }
func (m *memory) Emit(ev any)     { m.events = append(m.events, ev) }

// do runs one command, as a shard would.
func (m *memory) do(t testing.TB, op any) (*command.LockResult, error) {
	t.Helper()
	m.writes = 0
	body, err := Machine{}.Apply(m, encode(Command(op)))
	if err != nil {
		if m.writes > 0 {
			t.Fatalf("%T was refused (%v) after %d writes", op, err, m.writes)
		}
		return nil, err
	}
	if m.writes > 1200 {
		t.Fatalf("%T wrote %d rows in one command", op, m.writes)
	}
	res := &command.LockResult{}
	if err := proto.Unmarshal(body, res); err != nil {
		t.Fatal(err)
	}
	return res, nil
}

func (m *memory) must(t testing.TB, op any) *command.LockResult {
	t.Helper()
	res, err := m.do(t, op)
	if err != nil {
		t.Fatalf("%T: %v", op, err)
	}
	return res
}

func (m *memory) fails(t testing.TB, kind dc.Kind, op any) error {
	t.Helper()
	_, err := m.do(t, op)
	if err == nil || dc.KindOf(err) != kind {
		t.Fatalf("%T: got %v, want kind %v", op, err, kind)
	}
	return err
}

func (m *memory) session(t testing.TB, node dc.NodeID) uint64 {
	t.Helper()
	return m.must(t, &command.LockOpenSession{Node: uint64(node), Generation: Generation(m, node) + 1, TtlMs: 10_000}).Session
}
