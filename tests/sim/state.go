package sim

import (
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"missingos/consensus"
	"missingos/srv/dc"
	"missingos/storage"
)

// ledger is the state machine's commands: "append ID" adds a line to the list and answers its place, "set REGISTER VALUE" sets a register.
type ledger struct{}

var countKey = []byte("count")

func lineKey(n int) []byte           { return fmt.Appendf(nil, "line/%08d", n) }
func registerKey(name string) []byte { return []byte("reg/" + name) }

func (ledger) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	f := strings.Fields(string(body))
	switch f[0] {
	case "append":
		n := number(tx, countKey)
		tx.Set(lineKey(n), []byte(f[1]))
		tx.Set(countKey, strconv.AppendInt(nil, int64(n+1), 10))
		return strconv.AppendInt(nil, int64(n), 10), nil
	case "set":
		tx.Set(registerKey(f[1]), []byte(f[2]))
		return nil, nil
	}
	panic("unknown command " + f[0])
}

func number(rd storage.Reader, key []byte) int {
	v, ok := rd.Get(key)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(string(v))
	if err != nil {
		panic(err)
	}
	return n
}

// state is a replica's state in memory, with the exactly-once rules of real shards. It is made of entries, so that it can be checkpointed, sent and
// made again.
type state struct {
	disk *disk

	mu      sync.Mutex
	shard   *storage.Volatile
	entries []consensus.Entry
}

var _ consensus.StateMachine = (*state)(nil)

// openState makes what the disk's last checkpoint holds.
func openState(disk *disk) *state {
	s := &state{disk: disk}
	disk.mu.Lock()
	kept := disk.checkpoint
	disk.mu.Unlock()
	s.reset(kept)
	return s
}

func (s *state) reset(entries []consensus.Entry) {
	s.shard, s.entries = storage.NewVolatile(ledger{}, nil), nil
	s.applyLocked(entries)
}

func (s *state) Apply(entries []consensus.Entry) [][]consensus.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(entries)
}

func (s *state) applyLocked(entries []consensus.Entry) [][]consensus.Result {
	out := make([][]consensus.Result, len(entries))
	for i, e := range entries {
		if e.Index <= s.shard.Applied() {
			continue
		}
		s.entries = append(s.entries, e)
		for _, r := range s.shard.Apply([]storage.Entry{{Index: e.Index, Term: e.Term, Clock: e.Clock, Commands: e.Commands}})[0] {
			out[i] = append(out[i], consensus.Result{Body: r.Body, Err: r.Err})
		}
	}
	return out
}

func (s *state) Applied() dc.Index { s.mu.Lock(); defer s.mu.Unlock(); return s.shard.Applied() }
func (s *state) Clock() int64      { s.mu.Lock(); defer s.mu.Unlock(); return s.shard.Clock() }

func (s *state) Checkpoint() error {
	s.mu.Lock()
	kept := s.entries[:len(s.entries):len(s.entries)]
	s.mu.Unlock()
	time.Sleep(5 * time.Millisecond)
	return s.disk.write(func() {
		if len(kept) >= len(s.disk.checkpoint) { // else a later one was quicker
			s.disk.checkpoint = kept
		}
	})
}

// Queued implements consensus.StateMachine.
func (s *state) Queued() bool { return false }

func (s *state) Hold(at, _ dc.Index) (consensus.HeldState, error) {
	if at != 0 {
		return nil, dc.Errorf(dc.Stale, "hold", "", "only the last state is here")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return held(s.entries[:len(s.entries):len(s.entries)]), nil
}

// held is what a state was made of at some time.
type held []consensus.Entry

func (h held) Index() dc.Index {
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].Index
}

func (h held) WriteSnapshot(_ context.Context, _ consensus.Pull, w io.Writer) error {
	return gob.NewEncoder(w).Encode([]consensus.Entry(h))
}

func (held) Release() {}

func (s *state) Restore(ctx context.Context, _ dc.Index, fetch consensus.Fetch) error {
	r, err := fetch(ctx, consensus.Pull{})
	if err != nil {
		return err
	}
	defer r.Close()
	var kept []consensus.Entry
	if err := gob.NewDecoder(r).Decode(&kept); err != nil {
		return err
	}
	s.mu.Lock()
	s.reset(kept)
	s.mu.Unlock()
	return s.Checkpoint()
}

// register reads a register as this replica has it; zero if it was never set.
func (s *state) register(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	_ = s.shard.View(func(rd storage.Reader) error { n = number(rd, registerKey(name)); return nil }) // a Volatile has no disk to fail
	return n
}

// list gives all lines.
func (s *state) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	_ = s.shard.View(func(rd storage.Reader) error {
		for i := range number(rd, countKey) {
			line, _ := rd.Get(lineKey(i))
			all = append(all, string(line))
		}
		return nil
	})
	return all
}
