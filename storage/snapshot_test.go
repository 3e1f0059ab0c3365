package storage

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"missingos/srv/dc"
)

func snapshotOf(t testing.TB, s *Shard) []byte {
	t.Helper()
	return streamOf(t, s, SnapshotFormat)
}

func streamOf(t testing.TB, s *Shard, format int) []byte {
	t.Helper()
	h, err := s.Hold()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	var b bytes.Buffer
	if err := h.WriteSnapshot(t.Context(), format, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSnapshotMovesTheWholeState(t *testing.T) {
	from := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, from)
	from.Apply(history(60, rand.New(rand.NewPCG(1, 1))))
	stream := snapshotOf(t, from)

	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer func() { mustClose(t, to) }()
	restored := false
	to.Observe(func(i dc.Index, events []any) {
		restored = restored || i == 60 && len(events) == 1 && events[0] == any(Restored{})
	})
	to.Apply([]Entry{entry(1, "set old 1")})
	old, err := to.Pin()
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Restore(t.Context(), bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if !restored {
		t.Error("observers were not told")
	}
	err = old.View(func(r Reader) error {
		if _, ok := r.Get([]byte("old")); !ok {
			t.Error("an open view lost its state")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	old.Release()
	if to.Mark() != from.Mark() || to.Clock() != from.Clock() || mustHash(t, to) != mustHash(t, from) || to.Durable() != from.Mark() {
		t.Errorf("restored %v clock %d durable %v", to.Mark(), to.Clock(), to.Durable())
	}
	if again := snapshotOf(t, to); !bytes.Equal(again, stream) {
		t.Error("a snapshot of the copy differs")
	}
	more := []Entry{entry(61, "add n1 1", "big large1 600000", "clear k")}
	from.Apply(more)
	to.Apply(more)
	cfg := testConfig(t)
	cfg.BootID = "boot-2"
	dir := to.dir
	mustClose(t, to)
	to = mustOpen(t, dir, cfg)
	if to.Applied() != 61 || mustHash(t, to) != mustHash(t, from) {
		t.Errorf("after reopening: applied %d", to.Applied())
	}
}

func TestDamagedSnapshotsAreRefused(t *testing.T) {
	from := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, from)
	from.Apply(history(20, rand.New(rand.NewPCG(1, 1))))
	stream := snapshotOf(t, from)
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	to.Apply([]Entry{entry(1, "set old 1")})
	before := mustHash(t, to)
	dice := rand.New(rand.NewPCG(3, 3))
	try := func(what string, damaged []byte) {
		if err := to.Restore(t.Context(), bytes.NewReader(damaged)); !errors.Is(err, dc.Corrupt) {
			t.Errorf("%s: got %v", what, err)
		}
		if to.Applied() != 1 || mustHash(t, to) != before {
			t.Fatalf("%s: the state changed", what)
		}
	}
	for _, n := range []int{0, 7, 8, 15, 30, len(stream) / 2, len(stream) - 14, len(stream) - 1} {
		try(fmt.Sprintf("cut at %d of %d", n, len(stream)), stream[:n])
	}
	for range 8 {
		at := dice.IntN(len(stream))
		damaged := bytes.Clone(stream)
		damaged[at] ^= 1 << dice.IntN(8)
		try(fmt.Sprintf("bit flipped at %d", at), damaged)
	}
}

// A crash at each step of Restore leaves the old state or the new, whole.
func TestCrashesDuringRestore(t *testing.T) {
	from := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, from)
	from.Apply(history(20, rand.New(rand.NewPCG(1, 1))))
	stream := snapshotOf(t, from)
	clones := map[string]string{}
	var to *Shard
	cfg := testConfig(t)
	cfg.hooks.step = func(name string) error {
		if to != nil {
			clones[name] = clone(t, to.dir)
		}
		return nil
	}
	to = mustOpen(t, t.TempDir(), cfg)
	defer mustClose(t, to)
	to.Apply([]Entry{entry(1, "set old 1")})
	if err := to.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	before := mustHash(t, to)
	if err := to.Restore(t.Context(), bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	clones["done"] = clone(t, to.dir)
	for _, step := range []string{"receive", "rows", "swap", "done"} {
		for _, boot := range []string{"boot-1", "boot-2"} {
			cfg := testConfig(t)
			cfg.BootID = boot
			s := mustOpen(t, clone(t, clones[step]), cfg)
			want := before
			if step == "done" {
				want = mustHash(t, from)
			}
			if mustHash(t, s) != want {
				t.Errorf("crash at %q, then %s: applied %d", step, boot, s.Applied())
			}
			mustClose(t, s)
		}
	}
}
