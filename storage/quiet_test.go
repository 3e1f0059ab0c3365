package storage

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestCompactorsRunOnlyWhileThereIsWork(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer func() { mustClose(t, s) }()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := s.View(func(r Reader) error {
					for range r.Scan(Span{Start: []byte("k"), KeysOnly: true}) {
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	if s.gen.awake {
		t.Error("a new shard is awake")
	}
	i := 0
	for ; i < 400 && !s.gen.awake; i++ {
		s.Apply([]Entry{entry(i+1, fmt.Sprintf("big k%d 200000", i%50))})
	}
	if !s.gen.awake {
		t.Errorf("still asleep after %d tables", s.gen.db.Levels()[0].NumTables)
	}
	close(stop)
	readers.Wait()
	before := mustHash(t, s)
	for deadline := time.Now().Add(10 * time.Second); s.gen.awake && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		s.sleep() // refused until the compactors are done
	}
	if s.gen.awake || mustHash(t, s) != before {
		t.Errorf("awake %v", s.gen.awake)
	}
	s.Apply([]Entry{entry(i+1, "set a 1")})
	if value(t, s, "a") != "1" {
		t.Error("the shard does not work")
	}
}

func TestAPinnedStateHoldsReopeningBack(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1")})
	p, err := s.Pin()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.reopen(true, 0); err != nil || s.gen.awake {
		t.Errorf("reopened under a reader: %v", err)
	}
	if err := s.reopen(true, 1); err != nil || s.gen.awake {
		t.Errorf("reopened under a reader: %v", err)
	}
	p.Release()
	if err := s.reopen(true, 0); err != nil || !s.gen.awake {
		t.Errorf("not reopened: %v", err)
	}
}
