package storage

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"missingos/srv/dc"
)

// Views at any held version must see what Badger itself has there, whatever is cached, while a small cache is turned over again and again.
func TestCachedReadsAreThoseOfTheDisk(t *testing.T) {
	cfg := testConfig(t)
	cfg.CacheBytes = 4 * dc.KiB
	s := mustOpen(t, t.TempDir(), cfg)
	defer mustClose(t, s)
	r := rand.New(rand.NewPCG(1, 2))
	var pins []*Pinned
	defer func() {
		for _, p := range pins {
			p.Release()
		}
	}()
	check := func(p *Pinned) {
		disk := p.gen.reader(p.Index)
		defer disk.close()
		err := p.View(func(view Reader) error {
			for range 20 {
				key := fmt.Appendf(nil, "k%d", r.IntN(60))
				got, ok := view.Get(key)
				want, there := disk.Get(key)
				if ok != there || string(got) != string(want) {
					t.Fatalf("%s at version %d (of %d): got %q %v, want %q %v", key, p.Index, s.Applied(), got, ok, want, there)
				}
				if ok {
					got[0] ^= 0xff // a copy that is the caller's
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1500 {
		var lines []string
		for range 1 + r.IntN(4) {
			key := fmt.Sprint("k", r.IntN(60))
			switch r.IntN(5) {
			case 0:
				lines = append(lines, "del "+key)
			case 1:
				lines = append(lines, fmt.Sprintf("big %s %d", key, 1+r.IntN(400))) // some are too large to be kept
			case 2:
				lines = append(lines, fmt.Sprintf("add %s %d", key, i))
			default:
				lines = append(lines, fmt.Sprintf("set %s %d", key, i))
			}
		}
		s.Apply([]Entry{entry(i+1, lines...)})
		if p, err := s.Pin(); err != nil {
			t.Fatal(err)
		} else if pins = append(pins, p); len(pins) > 8 {
			j := r.IntN(len(pins))
			pins[j].Release()
			pins = append(pins[:j], pins[j+1:]...)
		}
		check(pins[r.IntN(len(pins))])
		if c := s.gen.cache; c.bytes < 0 || c.bytes > c.limit {
			t.Fatalf("the young half has %d bytes of %d", c.bytes, c.limit)
		}
	}
}

// A view that began before a write must not bring the old row into the cache after it.
func TestAViewNeverCachesWhatIsOverwritten(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "add n 1")})
	var stop atomic.Bool
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop.Store(true)
	for range 4 {
		readers.Go(func() {
			last := uint64(0)
			for !stop.Load() {
				err := s.View(func(r Reader) error {
					v, ok := r.Get([]byte("n"))
					if !ok || len(v) != 8 {
						return fmt.Errorf("got %v %v", v, ok)
					}
					now := binary.BigEndian.Uint64(v)
					if now < last {
						return fmt.Errorf("went back from %d to %d", last, now)
					}
					last = now
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 3000 {
		s.Apply([]Entry{entry(i+2, "add n 1")})
		if i%64 == 0 { // so that it is read from the disk again
			s.gen.cache.mu.Lock()
			s.gen.cache.young, s.gen.cache.old, s.gen.cache.bytes = map[string]cachedRow{}, nil, 0
			s.gen.cache.mu.Unlock()
		}
	}
}
