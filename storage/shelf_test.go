package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"missingos/srv/dc"
)

// shelfConfig lets a test shelve by hand.
func shelfConfig(t testing.TB) Config {
	cfg := testConfig(t)
	cfg.ShelveAfter = time.Hour
	return cfg
}

// putOnShelf shelves s, which must be idle.
func putOnShelf(t testing.TB, s *Shard) {
	t.Helper()
	s.shelve() // looks away: it has been used
	for deadline := time.Now().Add(10 * time.Second); s.gen.db != nil && s.gen.awake && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		s.sleep()
	}
	s.shelve()
	if !s.Stats().Shelved {
		t.Fatal("the shard is not shelved")
	}
}

func TestANewShardIsShelvedUntilItIsUsed(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, shelfConfig(t))
	if st := s.Stats(); !st.Shelved || st.Applied != (Mark{}) {
		t.Errorf("got %+v", st)
	}
	if err := s.Checkpoint(); err != nil || !s.Stats().Shelved {
		t.Errorf("a checkpoint takes it down: %v", err)
	}
	s.Apply([]Entry{entry(1, "set a 1")})
	if s.Stats().Shelved || value(t, s, "a") != "1" {
		t.Error("a write does not take it down")
	}
	mustClose(t, s)
	s = mustOpen(t, dir, shelfConfig(t))
	defer func() { mustClose(t, s) }()
	if st := s.Stats(); !st.Shelved || st.Applied.Index != 1 || st.Durable != st.Applied || s.Clock() != entry(1).Clock || st.DiskBytes == 0 {
		t.Errorf("got %+v, clock %d", st, s.Clock())
	}
	for _, r := range s.Apply([]Entry{entry(1, "set a 2")}) {
		if r[0].Err == nil {
			t.Error("an entry was applied twice")
		}
	}
	if !s.Stats().Shelved {
		t.Error("an entry that is applied already takes it down")
	}
	if value(t, s, "a") != "1" || s.Stats().Shelved {
		t.Error("a read does not take it down")
	}
}

// A history is the same with shelving in between as without, reads and held states included.
func TestShelvingChangesNothing(t *testing.T) {
	dice := rand.New(rand.NewPCG(7, 7))
	entries := history(200, dice)
	want := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, want)
	dir := t.TempDir()
	s := mustOpen(t, dir, shelfConfig(t))
	defer func() { mustClose(t, s) }()
	var held *Held
	var before []byte
	for i, e := range entries {
		if w, g := want.Apply([]Entry{e}), s.Apply([]Entry{e}); fmt.Sprint(w) != fmt.Sprint(g) {
			t.Fatalf("entry %d: got %v, want %v", i+1, g, w)
		}
		if i == 60 {
			var err error
			if held, err = s.Hold(0, 0); err != nil {
				t.Fatal(err)
			}
			before = streamOf(t, s, SnapshotFormat)
		}
		switch dice.IntN(8) {
		case 0:
			putOnShelf(t, s)
		case 1:
			if held == nil {
				mustClose(t, s)
				s = mustOpen(t, dir, shelfConfig(t))
			}
		case 2:
			if mustHash(t, s) != mustHash(t, want) {
				t.Fatalf("the state differs after entry %d", i+1)
			}
		}
	}
	var after bytes.Buffer
	if err := held.WriteSnapshot(t.Context(), Pull{Format: SnapshotFormat}, &after); err != nil || !bytes.Equal(after.Bytes(), before) {
		t.Errorf("the held state has changed: %v", err)
	}
	held.Release()
	if mustHash(t, s) != mustHash(t, want) {
		t.Error("the state differs at the end")
	}
}

// Tables that shelving leaves are compacted in the end.
func TestShelvingLeavesFewTables(t *testing.T) {
	s := mustOpen(t, t.TempDir(), shelfConfig(t))
	defer func() { mustClose(t, s) }()
	awake := false
	for i := range 4 * wakeTables {
		s.Apply([]Entry{entry(i+1, fmt.Sprintf("set k%d x", i%3))})
		awake = awake || s.gen.awake
		putOnShelf(t, s)
	}
	if value(t, s, "k0"); !awake || s.gen.db.Levels()[0].NumTables > wakeTables {
		t.Errorf("%d tables, the compactors ran: %v", s.gen.db.Levels()[0].NumTables, awake)
	}
}

// Readers, writers and the shelf at once: each write is applied once, and no reader fails or sees a state go back.
func TestTheShelfBesideReadersAndWriters(t *testing.T) {
	s := mustOpen(t, t.TempDir(), shelfConfig(t))
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := uint64(0)
				err := s.View(func(r Reader) error {
					if v, ok := r.Get([]byte("n")); ok {
						n = binary.BigEndian.Uint64(v)
					}
					return nil
				})
				if err != nil || n < last {
					t.Errorf("read %d after %d: %v", n, last, err)
					return
				}
				last = n
				time.Sleep(time.Millisecond)
			}
		})
	}
	shelved := 0
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			s.mu.Lock()
			s.used = false
			s.mu.Unlock()
			s.shelve()
			s.mu.Lock()
			if !s.paused && s.gen.db == nil {
				shelved++
			}
			s.mu.Unlock()
		}
	})
	for i := range 60 {
		s.Apply([]Entry{entry(i+1, "add n 1")})
		if i%10 == 0 {
			if err := s.Checkpoint(); err != nil {
				t.Error(err)
			}
		}
		if i == 30 {
			if err := s.Restore(t.Context(), 0, sending(streamOf(t, s, SnapshotFormat))); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	close(stop)
	others.Wait()
	if got := binary.BigEndian.Uint64([]byte(value(t, s, "n"))); got != 60 || shelved == 0 {
		t.Errorf("counted %d, shelved %d times", got, shelved)
	}
	mustClose(t, s)
}

// Killed at any step of shelving and of taking down, the shard goes on from its last entry.
func TestKillsBesideTheShelf(t *testing.T) {
	for _, step := range []string{"sync logs", "write checkpoint", "put away", "take down", "shelved"} {
		dir, at := "", ""
		cfg := shelfConfig(t)
		var s *Shard
		cfg.hooks.step = func(name string) error {
			if name == at && dir == "" {
				dir = clone(t, s.dir)
			}
			return nil
		}
		s = mustOpen(t, t.TempDir(), cfg)
		s.Apply([]Entry{entry(1, "set a 1"), entry(2, "set b 2")})
		at = step
		putOnShelf(t, s)
		if step == "shelved" {
			dir = clone(t, s.dir)
		}
		if value(t, s, "b") != "2" || dir == "" {
			t.Fatalf("%s: the shard does not work, or the step was not taken", step)
		}
		mustClose(t, s)
		killed := mustOpen(t, dir, shelfConfig(t))
		if killed.Applied() != 2 || killed.Clock() != entry(2).Clock || value(t, killed, "a") != "1" {
			t.Errorf("%s: applied %d", step, killed.Applied())
		}
		killed.Apply([]Entry{entry(3, "set a 3")})
		if value(t, killed, "a") != "3" {
			t.Errorf("%s: the shard does not work", step)
		}
		mustClose(t, killed)
	}
}

// Killed with its files open, a shard is not taken for shelved: what came after its checkpoint would be out of sight until somebody reads.
func TestAKilledShardIsNotShelved(t *testing.T) {
	s := mustOpen(t, t.TempDir(), shelfConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1")})
	putOnShelf(t, s)
	s.Apply([]Entry{entry(2, "set a 2")})
	killed := mustOpen(t, clone(t, s.dir), shelfConfig(t))
	defer mustClose(t, killed)
	if killed.Stats().Shelved || killed.Applied() != 2 {
		t.Errorf("got %+v", killed.Stats())
	}
}

// A shard of the version before shelves has no clock in its checkpoint: it is opened, and shelved like any other from then on.
func TestAShardOfTheEarlierVersion(t *testing.T) {
	s := mustOpen(t, t.TempDir(), shelfConfig(t))
	s.Apply([]Entry{entry(1, "set a 1")})
	mustClose(t, s)
	name := filepath.Join(s.dir, "db-1", checkpointFile)
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	old, _, found := strings.Cut(string(content), `,"clock"`)
	if !found {
		t.Fatalf("no clock in %s", content)
	}
	if err := os.WriteFile(name, []byte(old+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = mustOpen(t, s.dir, shelfConfig(t))
		if s.Applied() != 1 || s.Clock() != entry(1).Clock {
			t.Errorf("applied %d, clock %d", s.Applied(), s.Clock())
		}
		if value(t, s, "a") != "1" {
			t.Error("the state is not there")
		}
		mustClose(t, s)
	}
	if s = mustOpen(t, s.dir, shelfConfig(t)); !s.Stats().Shelved {
		t.Error("not shelved")
	}
	mustClose(t, s)
}

// A shelved state that is less than the shard said is a fault, not a state.
func TestAShelvedStateThatWentBackIsRefused(t *testing.T) {
	s := mustOpen(t, t.TempDir(), shelfConfig(t))
	s.Apply([]Entry{entry(1, "set a 1")})
	mustClose(t, s)
	if err := writeCheckpoint(filepath.Join(s.dir, "db-1"), Mark{9, 1}, new(int64), "boot-0"); err != nil {
		t.Fatal(err)
	}
	cfg, fatal := shelfConfig(t), error(nil)
	cfg.Fatal = func(err error) { fatal = err }
	s = mustOpen(t, s.dir, cfg)
	if err := s.View(func(Reader) error { return nil }); dc.KindOf(err) != dc.Corrupt || !errors.Is(fatal, dc.Corrupt) {
		t.Errorf("got %v, fatal %v", err, fatal)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestIdleShardsAreShelvedInTime(t *testing.T) {
	cfg := testConfig(t)
	cfg.ShelveAfter = 5 * time.Millisecond
	s := mustOpen(t, t.TempDir(), cfg)
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1")})
	p, err := s.Pin()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if s.Stats().Shelved {
		t.Error("shelved under a reader")
	}
	p.Release()
	for deadline := time.Now().Add(10 * time.Second); !s.Stats().Shelved; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not shelved")
		}
	}
}

// Readers come before those that only apply, who leave a turn free for them, and everybody has a turn in the end.
func TestTurnsOfTheShelf(t *testing.T) {
	ts := turns{free: shelfSlots}
	order := make(chan string, 5)
	var waiting sync.WaitGroup
	wait := func(name string, urgent bool) {
		waiting.Go(func() {
			ts.take(urgent)
			order <- name
			ts.give()
		})
		for want, deadline := name, time.Now().Add(10*time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			ts.mu.Lock()
			n := len(ts.urgent) + len(ts.patient)
			ts.mu.Unlock()
			if fmt.Sprint(n) == want {
				return
			}
		}
		t.Fatalf("%s does not wait", name)
	}
	ts.take(false)
	wait("1", false) // a turn is free, but not for it
	ts.take(true)
	wait("2", true)
	wait("3", false)
	wait("4", true)
	ts.give()
	ts.give()
	waiting.Wait()
	close(order)
	got := ""
	for name := range order {
		got += name
	}
	if got[:2] != "24" && got[:2] != "42" || len(got) != 4 || ts.free != shelfSlots {
		t.Errorf("the order is %s, %d turns are free", got, ts.free)
	}
}
