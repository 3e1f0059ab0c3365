package storage

import (
	"bytes"
	"iter"
	"sync"

	"missingos/srv/dc"
)

// Volatile is a shard without a disk: the same machine, the same exactly-once rules, the state in memory. Tests of
// machines and services run on it; it has no goroutines and does no I/O, so it can live in a synctest bubble.
type Volatile struct {
	observe  func(dc.Index, []any)
	foretell func([]any)

	mu     sync.RWMutex
	ledger *ledger
	state  rowMap
}

// NewVolatile makes an empty shard of m. observe, if not nil, is called for each entry after it is applied, in order, with
// the events that the machine emitted; no lock is held.
func NewVolatile(m Machine, observe func(index dc.Index, events []any)) *Volatile {
	return &Volatile{ledger: newLedger(m), observe: observe}
}

// Foretell sets a function that is called with an entry's events before views show it; it must not use the shard. Call it before the first Apply.
func (v *Volatile) Foretell(fn func(events []any)) { v.foretell = fn }

// Apply applies entries in order and returns the results by entry and command. A machine that breaks its contract panics
// here.
func (v *Volatile) Apply(entries []Entry) [][]Result {
	all := make([][]Result, len(entries))
	for i, e := range entries {
		var events []any
		all[i], events = v.apply(e)
		if v.observe != nil {
			v.observe(e.Index, events)
		}
	}
	return all
}

func (v *Volatile) apply(e Entry) ([]Result, []any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	over := &overlay{base: (*stateReader)(&v.state)}
	results, events := v.ledger.entry(over, e)
	if v.foretell != nil && len(events) > 0 {
		v.foretell(events)
	}
	over.rows.each(Span{}, func(r row) bool {
		if r.dropped {
			v.state.remove(r.key)
		} else {
			v.state.put(r)
		}
		return true
	})
	return results, events
}

// View runs fn on the state as it is; entries wait meanwhile, so fn must not apply.
func (v *Volatile) View(fn func(Reader) error) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return fn(machineView{(*stateReader)(&v.state)})
}

// Applied is the index of the last entry applied.
func (v *Volatile) Applied() dc.Index {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.ledger.applied
}

// Clock is the log's clock: the greatest of all entries applied.
func (v *Volatile) Clock() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.ledger.clock
}

// stateReader reads a rowMap that holds a whole state.
type stateReader rowMap

func (s *stateReader) Get(key []byte) ([]byte, bool) {
	value, ok := (*rowMap)(s).get(key)
	return bytes.Clone(value), ok
}

func (s *stateReader) Scan(span Span) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		(*rowMap)(s).each(span, func(r row) bool {
			if span.KeysOnly {
				return yield(r.key, nil)
			}
			return yield(r.key, r.value)
		})
	}
}

// A machineView hides the shard's own rows from a Reader's user.
type machineView struct{ base Reader }

func (v machineView) Get(key []byte) ([]byte, bool) {
	checkKey(key)
	return v.base.Get(key)
}

func (v machineView) Scan(s Span) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		for key, value := range v.base.Scan(s) {
			if key[0] == shardKeys {
				continue
			}
			if !yield(key, value) {
				return
			}
		}
	}
}
