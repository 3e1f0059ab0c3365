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
	h, err := s.Hold(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	var b bytes.Buffer
	if err := h.WriteSnapshot(t.Context(), Pull{Format: format}, &b); err != nil {
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
	if err := to.Restore(t.Context(), 0, sending(stream)); err != nil {
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
	if !bytes.Equal(streamOf(t, to, 1), streamOf(t, from, 1)) { // without the size, which is a guess
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
		err := to.Restore(t.Context(), 0, sending(damaged))
		if len(damaged) < len(stream) && dc.KindOf(err) != dc.Unavailable || len(damaged) == len(stream) && !errors.Is(err, dc.Corrupt) && dc.KindOf(err) != dc.Unavailable {
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
