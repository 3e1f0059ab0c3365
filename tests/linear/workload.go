package linear

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
)

// A Table is a way to use the rows of one table.
type Table interface {
	// Do runs one operation. Its error is nil, errUnknown or errNothing.
	Do(ctx context.Context, c RowCall) (RowAnswer, error)
}

var (
	errUnknown = errors.New("the operation may have taken effect, or may still")
	errNothing = errors.New("the operation took no effect and tells nothing")
)

// A Locker takes exclusive locks and waits for them.
type Locker interface {
	Acquire(ctx context.Context, lock string) (Held, error)
}

// Held is a lock that was taken.
type Held interface {
	Fence() uint64
	// Trusted tells whether the holder may still think to have it.
	Trusted() bool
	// Release gives it back; an error means that it is not known whether, or when.
	Release(ctx context.Context) error
}

// A Load is how much the clients of a history do, and where.
type Load struct {
	Clients  int // of rows; as many again, at most three, of locks
	Duration time.Duration
	Pause    time.Duration // between two operations of a client, at most
	// Table and Locker give client n something to work with; nil if its node is down.
	Table  func(n int) Table
	Locker func(n int) Locker
	// EmptyCreate: the table makes rows without a value, as open(2) does.
	EmptyCreate bool
}

// What the clients work on. Few names, so that they meet.
var (
	registers = []string{"r0", "r1", "r2"}
	exclusive = []string{"x0", "x1"}
	swapped   = []string{"s0", "s1"}
	counters  = []string{"n0", "n1"}
	locks     = []string{"l0", "l1"}
)

const opTimeout = 5 * time.Second

// Run lets the clients work until Duration is over, while faults runs beside them; it returns when all have ended.
func (l Load) Run(ctx context.Context, faults func(ctx context.Context)) (rows, locked *History) {
	rows, locked = NewHistory(), NewHistory()
	l.begin(ctx, rows)
	work, stop := context.WithTimeout(ctx, l.Duration)
	defer stop()
	var wg sync.WaitGroup
	for n := range l.Clients {
		wg.Go(func() { l.useRows(work, ctx, rows, n) })
	}
	for n := range min(l.Clients, 3) {
		wg.Go(func() { l.useLocks(work, ctx, locked, n) })
	}
	if faults != nil {
		wg.Go(func() { faults(work) })
	}
	wg.Wait()
	return rows, locked
}

// begin makes the rows that put and swap expect, before anybody looks.
func (l Load) begin(ctx context.Context, h *History) {
	for _, k := range append(append([]string(nil), registers...), swapped...) {
		do(ctx, h, l.Table(0), 0, RowCall{Verb: Put, Key: k, Value: "first"})
	}
}

// do runs and records one operation.
func do(ctx context.Context, h *History, t Table, client int, c RowCall) (RowAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	called := h.Now()
	a, err := t.Do(ctx, c)
	returned := h.Now()
	switch {
	case errors.Is(err, errNothing) || err != nil && c.Verb == Get:
		return a, err
	case err != nil:
		h.Lost(client, called, c, RowAnswer{Unknown: true}, err)
		return a, err
	}
	h.Add(client, called, returned, c, a)
	return a, nil
}

// useRows is one client. work ends it; ctx is of the operations, which are not cut short by the end.
func (l Load) useRows(work, ctx context.Context, h *History, n int) {
	seen := map[string]string{} // values that were read, to swap
	for i := 0; pause(work, rand.N(l.Pause)); i++ {
		t := l.Table(n)
		if t == nil {
			pause(work, 50*time.Millisecond)
			continue
		}
		c := l.pick(n, i, seen)
		a, err := do(ctx, h, t, n, c)
		if c.Verb == Get && err == nil {
			seen[c.Key] = a.Value
		}
		if err != nil {
			n += l.Clients // an operation without an answer may go on beside the client's next one
			pause(work, 100*time.Millisecond)
		}
	}
}

func (l Load) pick(n, i int, seen map[string]string) RowCall {
	value := fmt.Sprintf("%d.%d", n, i)
	one := func(keys []string) string { return keys[rand.N(len(keys))] }
	verb := func(key string, verbs ...Verb) RowCall {
		return RowCall{Verb: verbs[rand.N(len(verbs))], Key: key, Value: value}
	}
	var c RowCall
	switch rand.N(4) {
	case 0:
		c = verb(one(registers), Get, Put)
	case 1:
		if c = verb(one(exclusive), Create, Create, Delete, Get); l.EmptyCreate {
			c.Value = ""
		}
	case 2:
		c = verb(one(swapped), Get, Swap, Swap, Put)
		c.Old = seen[c.Key]
	default:
		c = verb(one(counters), Add, Add, Get)
	}
	return c
}

// useLocks is one client that takes locks in turn.
func (l Load) useLocks(work, ctx context.Context, h *History, n int) {
	for i := 1; pause(work, rand.N(2*time.Millisecond)); i++ {
		locker := l.Locker(n)
		if locker == nil {
			pause(work, 50*time.Millisecond)
			continue
		}
		name := locks[rand.N(len(locks))]
		holder := 1 + i*l.Clients + n
		called := h.Now()
		held, err := locker.Acquire(work, name)
		if err != nil { // not recorded: if it was granted it is given back, unseen
			pause(work, 50*time.Millisecond)
			continue
		}
		acquired := h.Now()
		h.Add(n, called, acquired, LockCall{Lock: name, Acquire: true, Holder: holder, Fence: held.Fence()}, nil)
		pause(work, rand.N(5*time.Millisecond))
		from, until := h.Now(), int64(never)
		if !held.Trusted() {
			from = acquired
		}
		if err := held.Release(ctx); err == nil && from != acquired {
			until = h.Now()
		}
		h.Add(n, from, until, LockCall{Lock: name, Holder: holder}, nil)
	}
}

// pause waits; it says false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// number reads a decimal number; of something else it gives the text back, for the checker to refuse.
func number(s string) string {
	if n, err := strconv.Atoi(s); err == nil {
		return strconv.Itoa(n)
	}
	return s
}
