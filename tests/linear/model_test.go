package linear

import (
	"testing"

	"github.com/anishathalye/porcupine"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// op makes an operation of client c from time a to b.
func op(c int, a, b int64, in, out any) porcupine.Operation {
	return porcupine.Operation{ClientId: c, Call: a, Return: b, Input: in, Output: out}
}

func TestModelsTellGoodFromBad(t *testing.T) {
	done := RowAnswer{Done: true}
	put := func(v string) RowCall { return RowCall{Verb: Put, Key: "k", Value: v} }
	get := RowCall{Verb: Get, Key: "k"}
	create := RowCall{Verb: Create, Key: "k", Value: "c"}
	add := RowCall{Verb: Add, Key: "k"}
	take := func(holder int, fence uint64) LockCall { return LockCall{"l", true, holder, fence} }
	free := func(holder int) LockCall { return LockCall{"l", false, holder, 0} }
	for name, test := range map[string]struct {
		model porcupine.Model
		ops   []porcupine.Operation
		want  bool
	}{
		"a read of what was written": {Rows, []porcupine.Operation{
			op(1, 0, 1, put("a"), done), op(2, 2, 3, get, RowAnswer{Done: true, Value: "a"}),
		}, true},
		"a stale read": {Rows, []porcupine.Operation{
			op(1, 0, 1, put("a"), done), op(1, 2, 3, put("b"), done), op(2, 4, 5, get, RowAnswer{Done: true, Value: "a"}),
		}, false},
		"either value while a write is under way": {Rows, []porcupine.Operation{
			op(1, 0, 1, put("a"), done), op(1, 2, 9, put("b"), done), op(2, 3, 4, get, RowAnswer{Done: true, Value: "b"}), op(3, 1, 4, get, RowAnswer{Done: true, Value: "a"}),
		}, true},
		"a value that goes back": {Rows, []porcupine.Operation{
			op(1, 0, 1, put("a"), done), op(1, 2, 9, put("b"), done), op(2, 3, 4, get, RowAnswer{Done: true, Value: "b"}), op(3, 5, 6, get, RowAnswer{Done: true, Value: "a"}),
		}, false},
		"an unknown write seen late": {Rows, []porcupine.Operation{
			op(1, 0, never, put("a"), RowAnswer{Unknown: true}), op(2, 5, 6, get, RowAnswer{}), op(2, 7, 8, get, RowAnswer{Done: true, Value: "a"}),
		}, true},
		"an unknown write never seen": {Rows, []porcupine.Operation{
			op(1, 0, never, put("a"), RowAnswer{Unknown: true}), op(2, 5, 6, get, RowAnswer{}),
		}, true},
		"two creators": {Rows, []porcupine.Operation{op(1, 0, 5, create, done), op(2, 1, 6, create, done)}, false},
		"a creator after a delete": {Rows, []porcupine.Operation{
			op(1, 0, 5, create, done), op(1, 6, 7, RowCall{Verb: Delete, Key: "k"}, done), op(2, 1, 8, create, done),
		}, true},
		"a number counted twice": {Rows, []porcupine.Operation{
			op(1, 0, 5, add, RowAnswer{Done: true, Value: "1"}), op(2, 1, 6, add, RowAnswer{Done: true, Value: "1"}),
		}, false},
		"a retried add applied twice": {Rows, []porcupine.Operation{
			op(1, 0, 5, add, RowAnswer{Done: true, Value: "2"}), op(2, 6, 7, get, RowAnswer{Done: true, Value: "2"}),
		}, false},
		"a swap of another value": {Rows, []porcupine.Operation{
			op(1, 0, 1, put("a"), done), op(1, 2, 3, RowCall{Verb: Swap, Key: "k", Old: "b", Value: "c"}, done),
		}, false},
		"a lock in turns": {Locks, []porcupine.Operation{
			op(1, 0, 1, take(1, 3), nil), op(2, 0, 9, take(2, 5), nil), op(1, 4, 5, free(1), nil),
		}, true},
		"two holders": {Locks, []porcupine.Operation{
			op(1, 0, 1, take(1, 3), nil), op(2, 0, 3, take(2, 5), nil), op(1, 4, 5, free(1), nil),
		}, false},
		"a fence that does not grow": {Locks, []porcupine.Operation{
			op(1, 0, 1, take(1, 3), nil), op(1, 2, 3, free(1), nil), op(2, 4, 5, take(2, 3), nil),
		}, false},
	} {
		if got := porcupine.CheckOperations(test.model, test.ops); got != test.want {
			t.Errorf("%s: linearizable %v, want %v", name, got, test.want)
		}
	}
}
