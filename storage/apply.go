package storage

import (
	"errors"
	"fmt"

	"missingos/srv/dc"
	"missingos/storage/command"
)

// A ledger is the deterministic part of a shard: it runs commands through the machine, once each, and says what came of them. It
// knows nothing of disks; [Shard] and [Volatile] give it a state to read and keep what it writes.
type ledger struct {
	machine Machine
	answers *answers
	fences  *fences
	applied dc.Index
	term    dc.Term
	clock   int64
}

func newLedger(m Machine) *ledger {
	return &ledger{machine: m, answers: newAnswers(), fences: newFences()}
}

// entry applies one entry into over and returns a result for each command and the events of all.
func (l *ledger) entry(over *overlay, e Entry) ([]Result, []any) {
	results := make([]Result, len(e.Commands))
	if e.Index <= l.applied {
		for i := range results {
			results[i].Err = appliedAlready(e.Index)
		}
		return results, nil
	}
	l.applied, l.term, l.clock = e.Index, e.Term, max(l.clock, e.Clock)
	l.answers.begin(over, e.Index, l.clock)
	t := tx{over: over, clock: l.clock, index: e.Index}
	for i, encoded := range e.Commands {
		results[i] = l.command(&t, encoded)
	}
	l.answers.end(over)
	return results, t.events
}

// appliedAlready answers the commands of an entry that the state came with, as a replica's does that was rebuilt while it led. They are not refused:
// what came of them is in the table of answers, where whoever asks again under the same request id finds it.
func appliedAlready(i dc.Index) error {
	return dc.Errorf(dc.Unavailable, "apply", "", "entry %d is applied already; the outcome is unknown here, ask again", i)
}

// command applies one command, or finds what was answered to it before.
func (l *ledger) command(t *tx, encoded []byte) Result {
	id, body, err := command.Decode(encoded)
	if err != nil {
		panic(fmt.Sprintf("storage: entry %d: %v", t.index, err))
	}
	if r, known := l.answers.recall(id); known {
		return r
	}
	if err := l.fences.check(t.over, id.Fence, l.clock); err != nil {
		r := Result{Err: err}
		l.answers.record(t.over, id, r)
		return r
	}
	t.wrote = false
	result, err := l.machine.Apply(t, body)
	r := Result{Body: result}
	if err != nil {
		var e *dc.Error
		if !errors.As(err, &e) {
			panic(fmt.Sprintf("storage: entry %d: the machine returned %T, want *dc.Error: %v", t.index, err, err))
		}
		if t.wrote {
			panic(fmt.Sprintf("storage: entry %d: the machine wrote and then returned an error: %v", t.index, err))
		}
		r = Result{Err: err}
	}
	l.answers.record(t.over, id, r)
	return r
}
