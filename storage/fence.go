package storage

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"fmt"
	"slices"

	"missingos/srv/dc"
)

// Fences are what a shard knows of locks whose holders write to it: the greatest fencing token it has seen of each. A command with a smaller one
// comes from somebody who has lost the lock since, and is refused. Whoever proposes a command with a token greater than the shard's has asked the
// lock store that it is the holder's; so a number that was made up shuts nobody out, and what is not known here need not be kept for ever.
//
// A token first seen more than two dc.DedupeWindow ago may be forgotten: a command that was admitted before it was known was issued at most one window
// after that by the log's clock (see answers), and expires one window later. A new lock beyond the first fencesKept lets the oldest of those go; with
// dc.MaxFences that may not go yet it is refused. What goes depends on the rows alone, not on the order in which they came to be in memory.
//
// A command whose token the lock store denied is proposed all the same, with token 0, which is always refused: an earlier attempt of the same request may
// be on its way, and so they get one answer.
//
// They are in memory and, for restarts and snapshots, in a row a lock: "!f" path.
type fences struct {
	known map[string]*fence
	byAge list.List // of *fence, by clock
	most  int       // dc.MaxFences, but in tests
}

// A fence is the greatest token seen of one lock.
type fence struct {
	lock  string
	token uint64
	clock int64 // of the log when it was seen first
	elem  *list.Element
}

const (
	fencePrefix = "!f"
	fenceEnd    = "!g"
	fencesKept  = 1024 // of these none is forgotten
	forgetLeast = 2    // by a new lock: so that they become fewer
)

func newFences() *fences { return &fences{known: map[string]*fence{}, most: dc.MaxFences} }

// check refuses a command whose token is not the greatest, and takes note of one that is.
func (f *fences) check(over *overlay, want dc.Fence, clock int64) error {
	if want.IsZero() {
		return nil
	}
	have := f.known[want.Lock]
	switch {
	case want.Token == 0:
		return dc.Errorf(dc.Stale, "fence", want.Lock, "the lock is not held under the write's fencing token")
	case have == nil:
		if len(f.known) >= fencesKept {
			f.forget(over, clock)
		}
		if len(f.known) >= f.most {
			return dc.Errorf(dc.NoSpace, "fence", want.Lock, "the group remembers the tokens of %d other locks (MaxFences) that it may not forget yet: write under fewer locks, or wait up to %v",
				len(f.known), 2*dc.DedupeWindow)
		}
		have = &fence{lock: want.Lock}
	case want.Token < have.token:
		return dc.Errorf(dc.Stale, "fence", want.Lock, "the write came under fencing token %d, but the lock has been taken since, under %d", want.Token, have.token)
	case want.Token == have.token:
		return nil
	}
	have.token, have.clock = want.Token, clock
	f.keep(have)
	over.set([]byte(fencePrefix+want.Lock), binary.AppendVarint(binary.AppendUvarint(nil, have.token), have.clock))
	return nil
}

// keep puts have, which is as young as any, behind all.
func (f *fences) keep(have *fence) {
	if have.elem != nil {
		f.byAge.MoveToBack(have.elem)
		return
	}
	f.known[have.lock], have.elem = have, f.byAge.PushBack(have)
}

// forget drops the oldest that are old enough: a few, and all of the same age as the last of them, because their order is not in the rows.
func (f *fences) forget(over *overlay, clock int64) {
	var last int64
	for n := 0; ; n++ {
		e := f.byAge.Front()
		if e == nil {
			return
		}
		old := e.Value.(*fence)
		if old.clock+2*dc.DedupeWindow.Milliseconds() >= clock || n >= forgetLeast && old.clock != last {
			return
		}
		last = old.clock
		f.byAge.Remove(e)
		delete(f.known, old.lock)
		over.drop([]byte(fencePrefix + old.lock))
	}
}

// load reads them from a shard.
func (f *fences) load(base Reader) error {
	var all []*fence
	for key, value := range base.Scan(Span{Start: []byte(fencePrefix), End: []byte(fenceEnd)}) {
		d := decoder{b: value}
		have := &fence{lock: string(key[len(fencePrefix):]), token: d.uvarint(), clock: d.varint()}
		if d.bad {
			return fmt.Errorf("the fence of lock %q does not decode", have.lock)
		}
		all = append(all, have)
	}
	slices.SortStableFunc(all, func(a, b *fence) int { return cmp.Compare(a.clock, b.clock) })
	for _, have := range all {
		f.keep(have)
	}
	return nil
}

// Fence is the greatest fencing token of a lock that the state has seen; zero for none.
func (s *Shard) Fence(lock string) (token uint64, err error) {
	p, err := s.Pin()
	if err != nil {
		return 0, err
	}
	defer p.Release()
	err = p.read(func(r Reader) error {
		if value, ok := r.Get([]byte(fencePrefix + lock)); ok {
			d := decoder{b: value}
			token = d.uvarint()
		}
		return nil
	})
	return token, err
}
