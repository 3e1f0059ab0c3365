package storage

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"missingos/srv/dc"
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

// A held version lets the files be reopened, and is whole after writes, checkpoints and compaction.
func TestAHeldVersionOutlivesWritesAndCompaction(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	entries := history(300, rand.New(rand.NewPCG(5, 5)))
	s.Apply(entries[:100])
	h, err := s.Hold(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	before := streamOf(t, s, SnapshotFormat)
	for i, e := range entries[100:] {
		s.Apply([]Entry{e})
		if i%60 > 0 {
			continue
		}
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		if err := s.reopen(i%120 == 0, 0); err != nil || s.gen.awake != (i%120 == 0) {
			t.Fatalf("not reopened under a held version: %v", err)
		}
		if s.gen.awake {
			if err := s.gen.db.Flatten(1); err != nil {
				t.Fatal(err)
			}
		}
	}
	var b bytes.Buffer
	if err := h.WriteSnapshot(t.Context(), Pull{Format: SnapshotFormat}, &b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), before) {
		t.Errorf("the held state has changed: %d bytes, were %d", b.Len(), len(before))
	}
	if after := streamOf(t, s, SnapshotFormat); bytes.Equal(after, before) {
		t.Error("nothing was written meanwhile")
	}
}

func TestAHeldVersionEndsWithItsState(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	s.Apply([]Entry{entry(1, "set a 1")})
	hold := func() *Held {
		h, err := s.Hold(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	refused := func(h *Held, kind dc.Kind) {
		t.Helper()
		if err := h.WriteSnapshot(t.Context(), Pull{Format: SnapshotFormat}, io.Discard); dc.KindOf(err) != kind {
			t.Errorf("got %v, want %v", err, kind)
		}
		h.Release()
		h.Release()
	}
	h := hold()
	if err := s.Restore(t.Context(), 0, sending(streamOf(t, s, SnapshotFormat))); err != nil {
		t.Fatal(err)
	}
	refused(h, dc.Stale)
	h = hold()
	mustClose(t, s) // does not wait for it
	refused(h, dc.Unavailable)
}
