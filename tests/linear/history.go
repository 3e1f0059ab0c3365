package linear

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// never is the return time of an operation that may still take effect after everything else.
const never = math.MaxInt64

// A History collects the operations of one test. It is safe for concurrent use.
type History struct {
	start time.Time

	mu      sync.Mutex
	ops     []porcupine.Operation
	unknown int
	causes  map[string]int // texts of errors of unknown outcomes
}

// NewHistory begins one now.
func NewHistory() *History { return &History{start: time.Now(), causes: map[string]int{}} }

// Now is the time since the history began, as operations carry it.
func (h *History) Now() int64 { return int64(time.Since(h.start)) }

// Add records an operation that was called and answered at the given times; returned may be never.
func (h *History) Add(client int, called, returned int64, in, out any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if returned == never {
		h.unknown++
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: called, Output: out, Return: returned})
}

// Lost records an operation whose outcome is unknown.
func (h *History) Lost(client int, called int64, in, out any, cause error) {
	h.Add(client, called, never, in, out)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.causes[cause.Error()]++
}

// Check fails the test unless the history is linearizable. It also fails one that is too small to mean anything.
func (h *History) Check(t *testing.T, model porcupine.Model, atLeast int) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	t.Logf("%s: %d operations, %d of unknown outcome", model.DescribeState(model.Init()), len(h.ops), h.unknown)
	if known := len(h.ops) - h.unknown; known < atLeast {
		t.Errorf("only %d operations were answered, which checks nothing; want %d", known, atLeast)
	}
	if h.unknown > len(h.ops)/10 {
		t.Errorf("%d of %d outcomes are unknown: that is not what the faults explain; some causes: %v", h.unknown, len(h.ops), h.causes)
	}
	result, info := porcupine.CheckOperationsVerbose(model, h.ops, checkTimeout)
	if result == porcupine.Ok {
		return
	}
	if result == porcupine.Unknown {
		t.Errorf("the history could not be decided in %v", checkTimeout)
		return
	}
	if f, err := visualization(); err == nil {
		defer f.Close()
		if err := porcupine.Visualize(model, info, f); err == nil {
			t.Logf("the history is drawn in %s", f.Name())
		}
	}
	t.Error("the history is not linearizable: some answer cannot be explained by any order of the operations")
	for _, part := range model.Partition(h.ops) {
		if porcupine.CheckOperationsTimeout(model, part, checkTimeout) == porcupine.Illegal {
			for _, o := range evidence(model, part) {
				t.Logf("client %2d  %12v .. %12v  %s", o.ClientId, at(o.Call), at(o.Return), model.DescribeOperation(o.Input, o.Output))
			}
		}
	}
}

func at(ns int64) string {
	if ns == never {
		return "?"
	}
	return time.Duration(ns).Round(10 * time.Microsecond).String()
}

// evidence gives the operations just before, and with, the first answer that cannot be explained.
func evidence(model porcupine.Model, ops []porcupine.Operation) []porcupine.Operation {
	ops = slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	// What had been answered by the n-th answer; all else was under way, or not begun, and may have done anything.
	known := func(n int) []porcupine.Operation {
		out := slices.Clone(ops[:n])
		for _, o := range ops[n:] {
			if _, isRow := o.Input.(RowCall); isRow && n > 0 && o.Call <= ops[n-1].Return {
				o.Return, o.Output = never, RowAnswer{Unknown: true}
				out = append(out, o)
			}
		}
		return out
	}
	n := sort.Search(len(ops), func(n int) bool {
		return porcupine.CheckOperationsTimeout(model, known(n), checkTimeout) == porcupine.Illegal
	})
	return known(n)[max(0, n-15):]
}

const checkTimeout = time.Minute
