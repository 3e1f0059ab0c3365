package logstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
	"missingos/consensus/logstore/simdisk"
	"missingos/srv/dc"
)

const smallSegment = 16 * dc.KiB

func openShared(t *testing.T, fs logstore.FS) *logstore.Shared {
	t.Helper()
	s, err := logstore.OpenShared(config(fs, func(err error) { t.Errorf("fatal: %v", err) }))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(fs logstore.FS, fatal func(error)) logstore.SharedConfig {
	return logstore.SharedConfig{FS: fs, SegmentBytes: smallSegment, CacheBytes: 4 * dc.KiB, Fatal: fatal}
}

// want is what a group's log must hold.
type want struct {
	first, last uint64
	data        map[uint64]string
	term        uint64
	vote        string
	voteTerm    uint64
}

func newWant() *want { return &want{data: map[uint64]string{}} }

func (w *want) clone() *want {
	c := *w
	c.data = maps.Clone(w.data)
	return &c
}

func (w *want) append(logs []*raft.Log) {
	for _, l := range logs {
		if w.last == 0 {
			w.first = l.Index
		}
		w.last = l.Index
		w.data[l.Index] = string(l.Data)
	}
}

func (w *want) cut(first, last uint64) {
	for i := first; i <= last; i++ {
		delete(w.data, i)
	}
	switch {
	case first <= w.first && last >= w.last:
		w.first, w.last = 0, 0
	case first <= w.first:
		w.first = last + 1
	default:
		w.last = first - 1
	}
}

// check says how s differs.
func (w *want) check(s logstore.Store) error {
	first, err1 := s.FirstIndex()
	last, err2 := s.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if first != w.first || last != w.last {
		return fmt.Errorf("entries %d to %d, want %d to %d", first, last, w.first, w.last)
	}
	for i := max(first, 1); i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if l.Index != i || string(l.Data) != w.data[i] {
			return fmt.Errorf("entry %d is %d with %.40q, want %.40q", i, l.Index, l.Data, w.data[i])
		}
	}
	var l raft.Log
	if err := s.GetLog(last+1, &l); !errors.Is(err, raft.ErrLogNotFound) {
		return fmt.Errorf("entry %d after the last: %v", last+1, err)
	}
	term, err1 := s.GetUint64([]byte("CurrentTerm"))
	voteTerm, err2 := s.GetUint64([]byte("LastVoteTerm"))
	vote, err3 := s.Get([]byte("LastVoteCand"))
	if w.vote == "" && err3 != nil && err3.Error() == "not found" {
		err3 = nil
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if term != w.term || voteTerm != w.voteTerm || string(vote) != w.vote {
		return fmt.Errorf("term %d, vote %q in %d, want %d, %q, %d", term, vote, voteTerm, w.term, w.vote, w.voteTerm)
	}
	return nil
}

// step is one change of a group's log, and what it makes of want.
type step func(s logstore.Store, w *want) error

func randomStep(rng *rand.Rand, w *want) step {
	switch n := rng.IntN(20); {
	case n < 12:
		index := w.last + 1
		if w.last == 0 {
			index = uint64(1 + rng.IntN(50))
		}
		var logs []*raft.Log
		for range 1 + rng.IntN(6) {
			size := rng.IntN(200)
			if rng.IntN(12) == 0 {
				size = rng.IntN(3500)
			}
			data := bytes.Repeat([]byte{byte(rng.IntN(256)), byte(rng.IntN(256)), byte(index)}, size/3+1)
			if rng.IntN(2) == 0 {
				for i := range data {
					data[i] = byte(rng.IntN(256))
				}
			}
			logs = append(logs, &raft.Log{Index: index, Term: 1 + index/10, Data: data})
			index++
		}
		return func(s logstore.Store, w *want) error { w.append(logs); return s.StoreLogs(logs) }
	case n < 15 && w.last > 0:
		to := w.first + uint64(rng.IntN(int(w.last-w.first)+1))
		return func(s logstore.Store, w *want) error {
			from := w.first
			w.cut(from, to)
			return s.DeleteRange(from, to)
		}
	case n < 17 && w.last > 0:
		from := w.first + uint64(rng.IntN(int(w.last-w.first)+1))
		return func(s logstore.Store, w *want) error { to := w.last; w.cut(from, to); return s.DeleteRange(from, to) }
	case n < 18:
		term := w.term + 1
		return func(s logstore.Store, w *want) error { w.term = term; return s.SetUint64([]byte("CurrentTerm"), term) }
	default:
		who := fmt.Sprintf("n%d", rng.IntN(9)+1)
		return func(s logstore.Store, w *want) error {
			w.voteTerm, w.vote = w.term, who
			return errors.Join(s.SetUint64([]byte("LastVoteTerm"), w.term), s.Set([]byte("LastVoteCand"), []byte(who)))
		}
	}
}

// Random changes of several groups, one of which hardly ever truncates, against what they must make of the log, through reopening and kills.
func TestTheSharedLogHoldsWhatWasWritten(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 3))
		disk := simdisk.New()
		s := openShared(t, disk)
		all := map[dc.GroupID]*want{}
		for id := dc.GroupID(1); id <= 4; id++ {
			all[id] = newWant()
		}
		for i := range 400 {
			id := dc.GroupID(1 + rng.IntN(4))
			st := randomStep(rng, all[id])
			if id == 1 && i%50 != 0 {
				continue // the laggard
			}
			if err := st(s.Open(id), all[id]); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, i, err)
			}
			if rng.IntN(60) == 0 {
				id := dc.GroupID(2 + rng.IntN(3))
				if err := s.Drop(id); err != nil {
					t.Fatal(err)
				}
				all[id] = newWant()
			}
			if rng.IntN(80) == 0 {
				old := s
				disk = disk.Kill()
				s = openShared(t, disk)
				if err := old.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for id, w := range all {
			if err := w.check(s.Open(id)); err != nil {
				t.Fatalf("seed %d, group %s: %v", seed, id, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Power cuts at every operation of the disk: what was acknowledged is there, and of what was under way all, nothing or a first part.
func TestPowerCuts(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 4))
		disk := simdisk.New()
		all := map[dc.GroupID]*want{1: newWant(), 2: newWant(), 3: newWant()}
		for life := range 6 {
			left := 5 + rng.IntN(60)
			cut := errors.New("the power is cut")
			var at *simdisk.Disk
			disk.Before = func(op, name string) error {
				if at != nil {
					return cut
				}
				if left--; left < 0 {
					at = disk.PowerCut(rand.New(rand.NewPCG(seed, uint64(life))))
					return cut
				}
				return nil
			}
			s, err := logstore.OpenShared(config(disk, func(error) {}))
			if err != nil && !errors.Is(err, cut) {
				t.Fatalf("seed %d, life %d: %v", seed, life, err)
			}
			var maybe *want
			var id dc.GroupID
			for err == nil {
				id = dc.GroupID(1 + rng.IntN(3))
				if id == 1 && rng.IntN(20) != 0 {
					continue
				}
				maybe = all[id].clone()
				if err = randomStep(rng, maybe)(s.Open(id), maybe); err == nil {
					all[id] = maybe
				}
			}
			if s != nil {
				_ = s.Close() // it says that the power is cut
			}
			disk = at
			s = openShared(t, disk)
			for g, w := range all {
				err := w.check(s.Open(g))
				if err != nil && g == id && maybe != nil {
					if partly := partOf(w, maybe, s.Open(g)); partly != nil {
						all[g], err = partly, partly.check(s.Open(g))
					}
				}
				if err != nil {
					t.Fatalf("seed %d, life %d, group %s: %v", seed, life, g, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// partOf gives what the log holds of a change that was cut off: the whole, or the first entries of an append.
func partOf(before, after *want, s logstore.Store) *want {
	if after.check(s) == nil {
		return after
	}
	last, err := s.LastIndex()
	if err != nil || last < before.last || last > after.last {
		return nil
	}
	part := before.clone()
	for _, i := range slices.Sorted(maps.Keys(after.data)) {
		if i > before.last && i <= last {
			part.append([]*raft.Log{{Index: i, Data: []byte(after.data[i])}})
		}
	}
	return part
}

func TestDamageIsRefused(t *testing.T) {
	disk := simdisk.New()
	s := openShared(t, disk)
	for i := uint64(1); i <= 60; i++ {
		if err := s.Open(1).StoreLog(&raft.Log{Index: i, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, 900)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := disk.List()
	if err != nil || len(names) < 3 {
		t.Fatalf("files %v, %v", names, err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		// In the last segment only what came before a later write is known to have been safe.
		for _, off := range []int{3, 40, 1100, 2500} {
			hurt := disk.Kill()
			hurt.Flip(name, off)
			again, err := logstore.OpenShared(config(hurt, func(error) {}))
			if err == nil {
				_ = again.Close()
				t.Errorf("%s with another byte at %d was opened", name, off)
			} else if dc.KindOf(err) != dc.Corrupt || !strings.Contains(err.Error(), name) {
				t.Errorf("%s with another byte at %d: %v", name, off, err)
			}
		}
		gone := disk.Kill()
		if err := gone.Remove(name); err != nil {
			t.Fatal(err)
		}
		if name == names[len(names)-1] {
			continue // that no segment follows is all there is to see
		}
		if _, err := logstore.OpenShared(config(gone, func(error) {})); err == nil {
			t.Errorf("without %s the log was opened", name)
		}
	}
}

func TestATornTailIsCutOff(t *testing.T) {
	disk := simdisk.New()
	s := openShared(t, disk)
	if err := s.Open(1).StoreLogs([]*raft.Log{{Index: 1, Data: []byte("a")}, {Index: 2, Data: []byte("b")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := disk.List()
	b := disk.Bytes(names[0])
	disk.Flip(names[0], bytes.LastIndexByte(b, 'b'))
	s = openShared(t, disk)
	defer s.Close()
	if last, _ := s.Open(1).LastIndex(); last != 1 {
		t.Errorf("last is %d", last)
	}
	if err := s.Open(1).StoreLog(&raft.Log{Index: 2, Data: []byte("c")}); err != nil {
		t.Error(err)
	}
}

func TestAFailingDiskEndsEverything(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		disk := simdisk.New()
		var fatal error
		s, err := logstore.OpenShared(config(disk, func(err error) { fatal = err }))
		if err != nil {
			t.Fatal(err)
		}
		broken := errors.New("input/output error")
		disk.Before = func(o, _ string) error {
			if o == op {
				return broken
			}
			return nil
		}
		if err := s.Open(1).StoreLog(&raft.Log{Index: 1}); !errors.Is(err, broken) || !errors.Is(fatal, broken) {
			t.Errorf("%s fails: append %v, fatal %v", op, err, fatal)
		}
		disk.Before = nil // a later sync that succeeds proves nothing
		if err := s.Open(1).StoreLog(&raft.Log{Index: 1}); !errors.Is(err, broken) {
			t.Errorf("append after %s failed: %v", op, err)
		}
		_ = s.Close()
	}
}

// A group that never truncates does not keep all segments: what it needs is moved.
func TestALaggardPinsNothing(t *testing.T) {
	disk := simdisk.New()
	s := openShared(t, disk)
	if err := s.Open(1).StoreLog(&raft.Log{Index: 7, Term: 1, Data: []byte("old")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Open(1).SetUint64([]byte("CurrentTerm"), 5); err != nil {
		t.Fatal(err)
	}
	busy := s.Open(2)
	for i := uint64(1); i <= 2000; i++ {
		if err := busy.StoreLog(&raft.Log{Index: i, Data: bytes.Repeat([]byte{1, byte(i), 3}, 100)}); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if err := busy.DeleteRange(i-19, i); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names, _ := disk.List(); len(names) > 8 {
		t.Errorf("%d files: %v", len(names), names)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openShared(t, disk)
	defer s.Close()
	w := newWant()
	w.append([]*raft.Log{{Index: 7, Data: []byte("old")}})
	w.term = 5
	if err := w.check(s.Open(1)); err != nil {
		t.Error(err)
	}
}

func TestManyGroupsAppendAtOnce(t *testing.T) {
	fs, err := logstore.OpenFS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := logstore.OpenShared(logstore.SharedConfig{FS: fs, SegmentBytes: dc.MiB, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for id := dc.GroupID(1); id <= 50; id++ {
		wg.Go(func() {
			g := s.Open(id)
			for i := uint64(1); i <= 200; i++ {
				if err := g.StoreLog(&raft.Log{Index: i, Term: 1, Data: fmt.Appendf(nil, "%d/%d", id, i)}); err != nil {
					t.Error(err)
					return
				}
				if i%64 == 0 {
					if err := g.DeleteRange(1, i-32); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = logstore.OpenShared(logstore.SharedConfig{FS: fs, SegmentBytes: dc.MiB, Fatal: func(err error) { t.Error(err) }}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for id := dc.GroupID(1); id <= 50; id++ {
		var l raft.Log
		for i := uint64(161); i <= 200; i++ {
			if err := s.Open(id).GetLog(i, &l); err != nil || string(l.Data) != fmt.Sprintf("%d/%d", id, i) {
				t.Fatalf("group %s, entry %d: %q, %v", id, i, l.Data, err)
			}
		}
	}
}

func TestTheCommitIndexIsKeptWithTheEntries(t *testing.T) {
	disk := simdisk.New()
	s := openShared(t, disk)
	g := s.Open(1).(raft.CommitTrackingLogStore)
	if err := errors.Join(g.StageCommitIndex(3), g.StoreLog(&raft.Log{Index: 1}), g.StageCommitIndex(9)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openShared(t, disk)
	defer s.Close()
	if i, err := s.Open(1).(raft.CommitTrackingLogStore).GetCommitIndex(); i != 3 || err != nil {
		t.Errorf("commit index %d, %v", i, err)
	}
}

// Compaction runs beside appends, as Raft does it: what is being written when everything written is dropped stays.
func TestCompactionBesideAppends(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		disk := simdisk.New()
		s := openShared(t, disk)
		g := s.Open(1)
		if err := s.Open(2).StoreLog(&raft.Log{Index: 1, Data: []byte("laggard")}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var dropped, acked uint64
		stop := make(chan struct{})
		wg.Go(func() {
			for i := uint64(1); i <= 600; i += 2 {
				logs := []*raft.Log{{Index: i, Data: fmt.Append(nil, i)}, {Index: i + 1, Data: bytes.Repeat([]byte{byte(i), 5, 7}, int(i%90))}}
				if err := g.StoreLogs(logs); err != nil {
					t.Error(err)
				}
				acked = i + 1
			}
			close(stop)
		})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, _ := g.FirstIndex()
				last, _ := g.LastIndex()
				if first == 0 || rng.IntN(3) == 0 {
					continue
				}
				if err := g.DeleteRange(first, last); err != nil {
					t.Error(err)
				}
				dropped = last
			}
		})
		wg.Wait()
		disk = disk.Kill()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openShared(t, disk)
		last, err := s.Open(1).LastIndex()
		if err != nil || acked != 600 || (last != acked && dropped != acked) {
			t.Errorf("seed %d: last is %d, %v; acknowledged %d, dropped to %d", seed, last, err, acked, dropped)
		}
		for i := dropped + 1; i <= acked; i++ {
			var l raft.Log
			if err := s.Open(1).GetLog(i, &l); err != nil {
				t.Errorf("seed %d: entry %d: %v", seed, i, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
