package linear

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/anishathalye/porcupine"
)

// A Verb is what an operation on a row does.
type Verb string

// The verbs.
const (
	Get    Verb = "get"
	Put    Verb = "put"
	Create Verb = "create" // only if there is no row (O_EXCL)
	Delete Verb = "delete"
	Swap   Verb = "swap" // put Value if the row's value is Old
	Add    Verb = "add"  // 1 to a decimal number
)

// RowCall asks something of a row.
type RowCall struct {
	Verb       Verb
	Key        string
	Value, Old string
}

// RowAnswer is what came back. Done is false for an operation that was refused by what it found: no row, a row already, another value.
type RowAnswer struct {
	Unknown bool
	Done    bool
	Value   string // of get and add
}

// rowState is a row: there or not, and its value.
type rowState struct {
	there bool
	value string
}

// step gives what a call answers in a state, and the state after it.
func (s rowState) step(c RowCall) (RowAnswer, rowState) {
	switch c.Verb {
	case Get:
		return RowAnswer{Done: s.there, Value: s.value}, s
	case Put:
		return RowAnswer{Done: true}, rowState{true, c.Value}
	case Create:
		if s.there {
			return RowAnswer{}, s
		}
		return RowAnswer{Done: true}, rowState{true, c.Value}
	case Delete:
		return RowAnswer{Done: s.there}, rowState{}
	case Swap:
		if !s.there || s.value != c.Old {
			return RowAnswer{}, s
		}
		return RowAnswer{Done: true}, rowState{true, c.Value}
	case Add:
		n, _ := strconv.Atoi(s.value) // no row is 0
		sum := strconv.Itoa(n + 1)
		return RowAnswer{Done: true, Value: sum}, rowState{true, sum}
	}
	panic("linear: no verb " + string(c.Verb))
}

// Rows is the model of rows, each by itself.
var Rows = porcupine.Model{
	Partition: partition(func(in any) string { return in.(RowCall).Key }),
	Init:      func() any { return rowState{} },
	Step: func(state, in, out any) (bool, any) {
		want, next := state.(rowState).step(in.(RowCall))
		got := out.(RowAnswer)
		return got.Unknown || got == want, next
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
	DescribeState:     func(s any) string { return fmt.Sprintf("row %+v", s) },
}

// LockCall takes or gives back a lock. A lock that was lost is given back too: at some time while its holder still thought to have it, or later.
type LockCall struct {
	Lock    string
	Acquire bool
	Holder  int    // unique to the acquisition
	Fence   uint64 // of the acquisition; 0 if it was lost before it could be read
}

type lockState struct {
	holder int // 0: free
	fence  uint64
}

// Locks is the model of exclusive locks, each by itself: one holder at a time, each with a larger fence than all before.
var Locks = porcupine.Model{
	Partition: partition(func(in any) string { return in.(LockCall).Lock }),
	Init:      func() any { return lockState{} },
	Step: func(state, in, _ any) (bool, any) {
		s, c := state.(lockState), in.(LockCall)
		if c.Acquire {
			return s.holder == 0 && (c.Fence > s.fence || c.Fence == 0), lockState{c.Holder, max(c.Fence, s.fence)}
		}
		return s.holder == c.Holder, lockState{0, s.fence}
	},
	DescribeOperation: func(in, _ any) string { return fmt.Sprintf("%+v", in) },
	DescribeState:     func(s any) string { return fmt.Sprintf("lock %+v", s) },
}

// partition splits operations by a name in their input; the parts are in order of first use.
func partition(name func(in any) string) func([]porcupine.Operation) [][]porcupine.Operation {
	return func(ops []porcupine.Operation) [][]porcupine.Operation {
		parts := map[string][]porcupine.Operation{}
		var names []string
		for _, o := range ops {
			n := name(o.Input)
			if _, ok := parts[n]; !ok {
				names = append(names, n)
			}
			parts[n] = append(parts[n], o)
		}
		slices.Sort(names)
		out := make([][]porcupine.Operation, 0, len(names))
		for _, n := range names {
			out = append(out, parts[n])
		}
		return out
	}
}

// visualization opens a file to draw a bad history in; it outlives the test.
func visualization() (*os.File, error) { return os.CreateTemp("", "dc-linear-*.html") }
