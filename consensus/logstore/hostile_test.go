package logstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
	"missingos/consensus/logstore/simdisk"
)

// noise is data that does not compress.
func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.IntN(256))
	}
	return b
}

// A process killed after it wrote a seal and before the fsync leaves the seal in the kernel's memory. The next process must make it durable before
// it goes on: the power may fail later.
func TestASealReadAfterAKillIsMadeDurable(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 6))
		disk := simdisk.New()
		s := openShared(t, disk)
		if err := s.Open(1).StoreLog(&raft.Log{Index: 1, Data: []byte("acknowledged")}); err != nil {
			t.Fatal(err)
		}
		killed := disk.Kill()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// The start after the kill writes the seal, and is killed before its fsync.
		kill := errors.New("killed")
		killed.Before = func(op, _ string) error {
			if op == "sync" {
				return kill
			}
			return nil
		}
		if _, err := logstore.OpenShared(config(killed, func(error) {})); !errors.Is(err, kill) {
			t.Fatalf("open: %v", err)
		}
		disk = killed.Kill()
		s = openShared(t, disk)
		if err := s.Open(1).StoreLog(&raft.Log{Index: 2, Data: []byte("acknowledged too")}); err != nil {
			t.Fatal(err)
		}
		after := disk.PowerCut(rng)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openShared(t, after)
		w := newWant()
		w.append([]*raft.Log{{Index: 1, Data: []byte("acknowledged")}, {Index: 2, Data: []byte("acknowledged too")}})
		if err := w.check(s.Open(1)); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The power fails while a segment's first batch is written, and parts of it reach the disk without the header. The segment's number is used
// again; what was never acknowledged must not come back behind what is written then.
func TestPartsOfATornFirstBatchDoNotComeBack(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		disk := simdisk.New()
		s, err := logstore.OpenShared(config(disk, func(error) {})) // the disk will fail
		if err != nil {
			t.Fatal(err)
		}
		cut := errors.New("the power is cut")
		disk.Before = func(op, _ string) error {
			if op == "sync" {
				return cut
			}
			return nil
		}

		var logs []*raft.Log // records of 512 bytes
		for i := uint64(1); i <= 6; i++ {
			logs = append(logs, &raft.Log{Index: i, Term: 1, Data: noise(rng, 512-32-10)})
		}
		if err := s.Open(1).StoreLogs(logs); err == nil {
			t.Fatal("acknowledged without an fsync")
		}
		after := disk.PowerCut(rng)
		_ = s.Close() // it says that the power is cut
		s = openShared(t, after)
		last, err := s.Open(1).LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		w := newWant()
		if last > 0 {
			w.append(logs[:last])
		}
		next := &raft.Log{Index: last + 1, Term: 2, Data: noise(rng, 512-32-10)}
		w.append([]*raft.Log{next})
		if err := s.Open(1).StoreLog(next); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openShared(t, after)
		if err := w.check(s.Open(1)); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A group that needs most of a segment must not keep all that follow either, and moving it must come to an end.
func TestAFatLaggardPinsNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 8))
	disk := simdisk.New()
	s := openShared(t, disk)
	w := newWant()
	for i := uint64(1); i <= 10; i++ { // ten of sixteen KiB
		l := &raft.Log{Index: i, Term: 1, Data: noise(rng, 1000)}
		if err := s.Open(1).StoreLog(l); err != nil {
			t.Fatal(err)
		}
		w.append([]*raft.Log{l})
	}
	busy := s.Open(2)
	writes := 0
	disk.Before = func(op, _ string) error {
		if op == "write" {
			writes++
		}
		return nil
	}
	for i := uint64(1); i <= 1500; i++ {
		if err := busy.StoreLog(&raft.Log{Index: i, Data: noise(rng, 300)}); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if err := busy.DeleteRange(i-19, i); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.check(s.Open(1)); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := disk.List()
	if len(names) > 12 {
		t.Errorf("%d files for 10 KiB that are needed: %v", len(names), names)
	}
	if writes > 4000 {
		t.Errorf("%d writes for 1,575 calls", writes)
	}
	s = openShared(t, disk)
	defer s.Close()
	if err := w.check(s.Open(1)); err != nil {
		t.Error(err)
	}
}

// Files that are used again hold valid records of their last life; cut anywhere, they must not be read.
func TestARecycledSegmentsPastIsNotRead(t *testing.T) {
	disk := simdisk.New()
	s := openShared(t, disk)
	g := s.Open(1)
	var i uint64
	for life := range 6 {
		for range 60 {
			i++
			if err := g.StoreLog(&raft.Log{Index: i, Term: 1, Data: bytes.Repeat(fmt.Appendf(nil, "%08d", i), 60)}); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				first, err := g.FirstIndex()
				if err := errors.Join(err, g.DeleteRange(first, i-1)); err != nil {
					t.Fatal(err)
				}
			}
			again := openShared(t, disk.Kill()) // the same records have the same places in each life
			last, err := again.Open(1).LastIndex()
			if err != nil || last != i {
				t.Fatalf("life %d: the log ends at %d, %v, want %d", life, last, err, i)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := disk.List()
	if !strings.Contains(strings.Join(names, " "), ".spare") {
		t.Errorf("no file waits to be used again: %v", names)
	}
}

// A replica that ends after its group was dropped must not leave anything for the next replica of that group.
func TestADroppedGroupTakesNoMoreWrites(t *testing.T) {
	disk := simdisk.New()
	s := openShared(t, disk)
	old := s.Open(1)
	if err := errors.Join(old.StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("old")}), s.Drop(1)); err != nil {
		t.Fatal(err)
	}
	if err := old.StoreLog(&raft.Log{Index: 2, Term: 1}); err == nil {
		t.Error("a dropped group takes an entry")
	}
	if err := old.SetUint64([]byte("CurrentTerm"), 9); err == nil {
		t.Error("a dropped group takes a term")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openShared(t, disk)
	defer s.Close()
	if err := newWant().check(s.Open(1)); err != nil {
		t.Error(err)
	}
}
