// Package storagetest runs a state machine without a disk, for the tests of storage/machine/...: apply a command under a
// clock of the test's, look at the rows, collect the events.
//
//	run := storagetest.New(kv.New())
//	result, err := run.Apply(body)
//	run.SetClock(run.Clock() + 60_000)
//	err = run.View(func(r storage.Reader) error { ... })
//
// It keeps the same promises as a shard on disk (reads of one's own writes, scans in key order, exactly-once
// commands) by being the same code over memory: [storage.Volatile]. A machine that breaks its contract panics.
package storagetest

import (
	"bytes"
	"fmt"
	"sync"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// StartClock is the clock of a new Run.
const StartClock = 1_700_000_000_000

// A Run is one machine with its state. It is safe for concurrent use.
type Run struct {
	mu     sync.Mutex
	shard  *storage.Volatile
	index  dc.Index
	clock  int64
	events []any
}

// New starts m on an empty state.
func New(m storage.Machine) *Run {
	r := &Run{clock: StartClock}
	r.shard = storage.NewVolatile(m, func(_ dc.Index, events []any) { r.events = append(r.events, events...) })
	return r
}

// An Option changes how one command is applied.
type Option func(*options)

type options struct{ id dc.RequestID }

// As gives a command a request id, so that a second Apply under the same id is a retry. Without it the command is applied as
// often as it is given.
func As(id dc.RequestID) Option { return func(o *options) { o.id = id } }

// Apply applies one command in an entry of its own and returns what the machine answered.
func (r *Run) Apply(body []byte, opts ...Option) ([]byte, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	res := r.Entry(command.Encode(o.id, body))[0]
	return res.Body, res.Err
}

// Entry applies encoded commands as one entry, as several that share a raft index.
func (r *Run) Entry(commands ...[]byte) []storage.Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	return r.shard.Apply([]storage.Entry{{Index: r.index, Term: 1, Clock: r.clock, Commands: commands}})[0]
}

// View runs fn on the state.
func (r *Run) View(fn func(storage.Reader) error) error { return r.shard.View(fn) }

// Clock is the clock that the next entry carries, Unix milliseconds.
func (r *Run) Clock() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

// SetClock sets the clock of the entries to come.
func (r *Run) SetClock(ms int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = ms
}

// Index is the index of the last entry.
func (r *Run) Index() dc.Index {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index
}

// Events returns the events emitted since the last call.
func (r *Run) Events() []any {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

// Dump lists the machine's rows, a line each, for golden comparisons and for a failing test's message.
func (r *Run) Dump() string {
	var b bytes.Buffer
	_ = r.View(func(rd storage.Reader) error {
		for key, value := range rd.Scan(storage.Span{}) {
			fmt.Fprintf(&b, "%q = %q\n", key, value)
		}
		return nil
	})
	return b.String()
}
