package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"missingos/srv/dc"
)

// Fences are what a shard knows of locks whose holders write to it: the greatest fencing token it has seen of each. A command with a smaller one
// comes from somebody who has lost the lock since, and is refused. Whoever proposes a command with a token greater than the shard's has asked the
// lock store that it is the holder's; so a number that was made up shuts nobody out, and what is not known here need not be kept for ever:
// a token seen dc.DedupeWindow ago may be forgotten, because every command that was proposed when it was not yet known has expired.
//
// A command whose token the lock store denied is proposed all the same, with token 0, which is always refused: an earlier attempt of the same request may
// be on its way, and so they get one answer.
//
// They are in memory and, for restarts and snapshots, in a row a lock: "!f" path.
type fences struct {
	known map[string]fence
}

// A fence is the greatest token seen of one lock.
type fence struct {
	token uint64
	clock int64 // of the log when it was seen first
}

const (
	fencePrefix = "!f"
	fenceEnd    = "!g"
	maxFences   = 1024 // kept at least as long as their window; beyond it the oldest go
)

func newFences() *fences { return &fences{known: map[string]fence{}} }

// check refuses a command whose token is not the greatest, and takes note of one that is.
func (f *fences) check(over *overlay, want dc.Fence, clock int64) error {
	if want.IsZero() {
		return nil
	}
	have := f.known[want.Lock]
	switch {
	case want.Token == 0:
		return dc.Errorf(dc.Stale, "fence", want.Lock, "the lock is not held under the write's fencing token")
	case want.Token < have.token:
		return dc.Errorf(dc.Stale, "fence", want.Lock, "the write came under fencing token %d, but the lock has been taken since, under %d", want.Token, have.token)
	case want.Token == have.token:
		return nil
	}
	if have.token == 0 && len(f.known) >= maxFences {
		f.forget(over, clock)
	}
	have = fence{token: want.Token, clock: clock}
	f.known[want.Lock] = have
	over.set([]byte(fencePrefix+want.Lock), binary.AppendVarint(binary.AppendUvarint(nil, have.token), have.clock))
	return nil
}

// forget drops the older half of those that are old enough.
func (f *fences) forget(over *overlay, clock int64) {
	var old []string
	for lock, have := range f.known {
		if have.clock < clock-dc.DedupeWindow.Milliseconds() {
			old = append(old, lock)
		}
	}
	slices.SortFunc(old, func(a, b string) int { return bytes.Compare(f.age(a), f.age(b)) })
	for _, lock := range old[:(len(old)+1)/2] {
		delete(f.known, lock)
		over.drop([]byte(fencePrefix + lock))
	}
}

// age sorts by time, and by name where times are equal: all replicas must forget the same.
func (f *fences) age(lock string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(f.known[lock].clock)), lock...)
}

// load reads them from a shard.
func (f *fences) load(base Reader) error {
	for key, value := range base.Scan(Span{Start: []byte(fencePrefix), End: []byte(fenceEnd)}) {
		d := decoder{b: value}
		have := fence{token: d.uvarint(), clock: d.varint()}
		if d.bad {
			return fmt.Errorf("the fence of lock %q does not decode", key[len(fencePrefix):])
		}
		f.known[string(key[len(fencePrefix):])] = have
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
