package storage

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage/command"
)

// A delivery is one command as it comes in an entry.
type delivery struct {
	id   dc.RequestID
	line string
}

// An accepted command, as the model of exactly-once remembers it: for ever.
type accepted struct {
	delivery
	clock  int64
	answer string
}

// A model says what a delivery must be answered, by looking through all of history.
type model struct {
	all   []accepted
	clock int64
	count map[string]uint64
}

func (m *model) deliver(d delivery) string {
	window := dc.DedupeWindow.Milliseconds()
	done := uint64(0)
	for _, a := range m.all {
		if a.id.Client != d.id.Client || a.clock+2*window < m.clock {
			continue
		}
		done = max(done, a.id.Done)
	}
	if d.id.Client != 0 {
		for _, a := range m.all {
			if a.id.Client == d.id.Client && a.id.Seq == d.id.Seq && a.clock+2*window >= m.clock && a.id.Seq >= done {
				return a.answer
			}
		}
		switch {
		case d.id.Seq == 0 || d.id.Done > d.id.Seq || d.id.Seq-d.id.Done >= dc.MaxInFlightPerClient:
			return "invalid"
		case d.id.Seq < done, d.id.Issued < m.clock-window, d.id.Issued > m.clock+window:
			return "stale"
		}
	}
	var answer string
	if d.line == "fail" {
		answer = "toy x: refused at " + fmt.Sprint(m.clock)
	} else {
		m.count[d.line]++
		answer = fmt.Sprint(m.count[d.line])
	}
	m.all = append(m.all, accepted{d, m.clock, answer})
	return answer
}

func spoken(r Result) string {
	if r.Err == nil {
		return string(r.Body)
	}
	switch k := dc.KindOf(r.Err); k {
	case dc.Stale, dc.Invalid:
		return k.String()
	}
	return r.Err.Error()
}

// traffic draws entries: new requests, retries, requests of clients that lost count, clocks that jump.
func traffic(draw func(n int) int, entries int) ([]Entry, [][]delivery) {
	var all []Entry
	var sent [][]delivery
	next := map[uint64]uint64{}
	done := map[uint64]uint64{}
	var past []delivery
	clock := int64(1_000_000_000)
	for i := 1; i <= entries; i++ {
		switch draw(8) {
		case 0:
			clock += int64(draw(400_000)) // up to more than the window
		case 1:
			clock += 2 * dc.DedupeWindow.Milliseconds()
		default:
			clock += int64(draw(1000))
		}
		e := Entry{Index: dc.Index(i), Term: 1, Clock: clock}
		var ds []delivery
		for range 1 + draw(4) {
			c := uint64(draw(4))
			d := delivery{line: fmt.Sprintf("add k%d 1", draw(3))}
			if draw(5) == 0 {
				d.line = "fail"
			}
			d.id = dc.RequestID{Client: c, Issued: clock + int64(draw(1000)) - 500}
			switch {
			case draw(3) == 0 && len(past) > 0:
				d = past[draw(len(past))]
			case draw(12) == 0:
				d.id.Issued += int64(draw(900_000)) - 450_000
				fallthrough
			default:
				next[c]++
				if draw(2) == 0 {
					done[c] = min(done[c]+uint64(draw(3)), next[c])
				}
				d.id.Seq, d.id.Done = next[c], done[c]
				if draw(20) == 0 {
					d.id.Seq = uint64(draw(int(next[c]) + 1))
				}
			}
			past = append(past, d)
			ds = append(ds, d)
			e.Commands = append(e.Commands, command.Encode(d.id, []byte(d.line)))
		}
		all, sent = append(all, e), append(sent, ds)
	}
	return all, sent
}

func TestCommandsApplyExactlyOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries, sent := traffic(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "draw") }, 60)
		v := NewVolatile(toy{}, nil)
		m := &model{count: map[string]uint64{}}
		for i, e := range entries {
			m.clock = max(m.clock, e.Clock)
			got := v.Apply([]Entry{e})[0]
			for j, d := range sent[i] {
				if want := m.deliver(d); spoken(got[j]) != want {
					t.Fatalf("entry %d command %d %+v at %d: got %q, want %q", i, j, d, m.clock, spoken(got[j]), want)
				}
			}
		}
	})
}

// Replicas that group entries differently, restart, crash or begin from a snapshot give the same answers and the same state.
func TestReplicasAgreeOverRestartsAndGroups(t *testing.T) {
	for seed := range uint64(8) {
		dice := rand.New(rand.NewPCG(seed, 7))
		entries, _ := traffic(dice.IntN, 120)
		steady := mustOpen(t, t.TempDir(), testConfig(t))
		var want [][]Result
		for _, e := range entries {
			want = append(want, steady.Apply([]Entry{e})...)
		}
		restless := mustOpen(t, t.TempDir(), testConfig(t))
		for at := 0; at < len(entries); {
			n := min(1+dice.IntN(10), len(entries)-at)
			for i, results := range restless.Apply(entries[at : at+n]) {
				for j, r := range results {
					if spoken(r) != spoken(want[at+i][j]) {
						t.Fatalf("seed %d entry %d command %d: got %q, want %q", seed, at+i, j, spoken(r), spoken(want[at+i][j]))
					}
				}
			}
			at += n
			switch dice.IntN(8) {
			case 0:
				dir := restless.dir
				mustClose(t, restless)
				restless = mustOpen(t, dir, testConfig(t))
			case 1:
				if err := restless.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			case 2:
				copied := mustOpen(t, t.TempDir(), testConfig(t))
				if err := copied.Restore(t.Context(), 0, sending(snapshotOf(t, restless))); err != nil {
					t.Fatal(err)
				}
				mustClose(t, restless)
				restless = copied
			}
		}
		if mustHash(t, restless) != mustHash(t, steady) {
			t.Errorf("seed %d: the states differ", seed)
		}
		mustClose(t, steady)
		mustClose(t, restless)
	}
}

func TestAnswersAreFreed(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	const n = 500
	for i := uint64(1); i <= n; i++ {
		id := dc.RequestID{Client: 1 + i%3, Seq: 1 + i/3, Done: 1 + i/3, Issued: 1_000_000}
		s.Apply([]Entry{{Index: dc.Index(i), Term: 1, Clock: 1_000_000, Commands: [][]byte{command.Encode(id, []byte("add k 1"))}}})
	}
	if got := pages(t, s); got != 3 {
		t.Errorf("%d rows of answers for 3 clients", got)
	}
	s.Apply([]Entry{{Index: n + 1, Term: 1, Clock: 1_000_000 + 2*dc.DedupeWindow.Milliseconds() + 1}})
	if got := pages(t, s); got != 0 || len(s.ledger.answers.callers) != 0 {
		t.Errorf("%d rows, %d clients after the window", got, len(s.ledger.answers.callers))
	}
}

func pages(t *testing.T, s *Shard) (n int) {
	t.Helper()
	p, err := s.Pin()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	_ = p.gen.physical(p.Index, nil, func(key []byte, _ byte, _ []byte) error {
		if string(key[:2]) == pagePrefix {
			n++
		}
		return nil
	})
	return n
}
