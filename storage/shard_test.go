package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"missingos/srv/dc"
)

func TestShardAppliesReadsAndReopens(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig(t))
	var seen []string
	s.Observe(func(i dc.Index, events []any) { seen = append(seen, fmt.Sprint(i, events)) })
	got := s.Apply([]Entry{entry(3, "set a 1", "add n 2", "add n 3"), entry(5), entry(6, "fail", "del a", "set b 2")})
	if r := got[0][2]; string(r.Body) != "5" || r.Err != nil {
		t.Errorf("second add: %s %v", r.Body, r.Err)
	}
	if err := got[2][0].Err; !errors.Is(err, dc.Conflict) || err.Error() != "toy x: refused at 1000006" {
		t.Errorf("fail: %v", err)
	}
	if want := "3 [2 5]|5 []|6 []"; strings.Join(seen, "|") != want {
		t.Errorf("events %q, want %q", seen, want)
	}
	if a, b := value(t, s, "a"), value(t, s, "b"); a != "" || b != "2" {
		t.Errorf("a=%q b=%q", a, b)
	}
	if r := s.Apply([]Entry{entry(6, "set b 3")}); r[0][0].Err == nil || value(t, s, "b") != "2" {
		t.Errorf("an entry was applied twice: %v", r)
	}
	before := mustHash(t, s)
	mustClose(t, s)
	s = mustOpen(t, dir, testConfig(t))
	defer mustClose(t, s)
	if m := s.Mark(); m != (Mark{6, 1}) || s.Clock() != 1000006 || s.Durable() != m {
		t.Errorf("after reopening: %v clock %d durable %v", m, s.Clock(), s.Durable())
	}
	if after := mustHash(t, s); after != before {
		t.Errorf("hash changed over a restart")
	}
}

func TestKilledProcessGoesOnFromItsLastEntry(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1")})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	s.Apply([]Entry{entry(2, "add n 1"), entry(3, "add n 1")})
	killed := mustOpen(t, clone(t, s.dir), testConfig(t))
	defer mustClose(t, killed)
	if killed.Applied() != 3 || killed.Durable().Index != 1 || mustHash(t, killed) != mustHash(t, s) {
		t.Errorf("applied %d durable %d", killed.Applied(), killed.Durable().Index)
	}
}

func TestLargeValuesAreSplitAndShrink(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer func() { mustClose(t, s) }()
	sizes := []int{2 * dc.MiB, 300_000, chunkBytes, chunkBytes + 1, 900_000, 10}
	for i, n := range sizes {
		s.Apply([]Entry{entry(i+1, fmt.Sprintf("big k %d", n))})
		if got := value(t, s, "k"); len(got) != n || !strings.HasPrefix(got, "k.k.") {
			t.Fatalf("size %d: got %d", n, len(got))
		}
		if n%2 == 0 { // the chunks to delete are also known after a restart
			dir := s.dir
			mustClose(t, s)
			s = mustOpen(t, dir, testConfig(t))
		}
	}
	s.Apply([]Entry{entry(10, "big z 700000"), entry(11, "del k")})
	rows := map[string]int{}
	p, err := s.Pin()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	_ = p.gen.physical(p.Index, nil, func(key []byte, _ byte, value []byte) error { rows[string(key[:2])] += len(value); return nil })
	if len(rows) != 2 || rows[chunkPrefix] != 700000 {
		t.Errorf("rows left: %v", rows)
	}
	if r := s.Apply([]Entry{entry(12, "clear z")}); string(r[0][0].Body) != "1" {
		t.Errorf("clear: %s", r[0][0].Body)
	}
}

func TestScansSeeWrittenRowsInOrder(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1", "set c 1", "set e 1", "set g 1")})
	base := s.gen.reader(1)
	defer base.close()
	over := &overlay{base: base}
	for _, k := range []string{"0", "b", "c", "f", "h"} {
		over.set([]byte(k), []byte("2"))
	}
	over.drop([]byte("e"))
	for _, tc := range []struct {
		span Span
		want string
	}{
		{Span{}, "0=2 a=1 b=2 c=2 f=2 g=1 h=2"},
		{Span{Reverse: true}, "h=2 g=1 f=2 c=2 b=2 a=1 0=2"},
		{Span{Start: []byte("b"), End: []byte("g")}, "b=2 c=2 f=2"},
		{Span{Start: []byte("b"), End: []byte("g"), Reverse: true}, "f=2 c=2 b=2"},
		{Span{Start: []byte("bb"), End: []byte("gg"), Reverse: true}, "g=1 f=2 c=2"},
		{Span{Start: []byte("d"), KeysOnly: true}, "f= g= h="},
		{Span{Start: []byte("x")}, ""},
	} {
		var got []string
		tx := &tx{over: over}
		for k, v := range tx.Scan(tc.span) {
			got = append(got, string(k)+"="+string(v))
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.span, s, tc.want)
		}
	}
}

func TestViewsAreOfOneStateAndOutliveCheckpoints(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1", "set b 1")})
	p, err := s.Pin()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	for i := range 40 { // several memtables, with compactions
		s.Apply([]Entry{entry(2+i, "big a 400000", "del b")})
		if err := s.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	err = p.View(func(r Reader) error {
		a, _ := r.Get([]byte("a"))
		b, _ := r.Get([]byte("b"))
		if string(a) != "1" || string(b) != "1" {
			t.Errorf("pinned state changed: a=%d bytes b=%q", len(a), b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWaitApplied(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan error, 2)
	go func() { done <- s.WaitApplied(ctx, 2) }()
	s.Apply([]Entry{entry(1)})
	s.Apply([]Entry{entry(2)})
	if err := <-done; err != nil {
		t.Error(err)
	}
	go func() { done <- s.WaitApplied(ctx, 3) }()
	mustClose(t, s)
	if err := <-done; !errors.Is(err, dc.Unavailable) {
		t.Errorf("closed: %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if err := s.WaitApplied(short, 9); !errors.Is(err, dc.Unavailable) {
		t.Errorf("closed: %v", err)
	}
}

func TestBrokenMachinesStopTheShard(t *testing.T) {
	for _, line := range []string{"write-and-fail", "reserved"} {
		var fatal error
		cfg := testConfig(t)
		cfg.Fatal = func(err error) { fatal = err }
		s := mustOpen(t, t.TempDir(), cfg)
		r := s.Apply([]Entry{entry(1, "set a 1"), entry(2, line), entry(3, "set a 2")})
		if fatal == nil || r[2][0].Err == nil {
			t.Errorf("%s: fatal %v, results %v", line, fatal, r)
		}
		if r := s.Apply([]Entry{entry(4, "set a 3")}); r[0][0].Err == nil {
			t.Errorf("%s: the shard went on", line)
		}
		mustClose(t, s)
	}
}

func TestASecondOpenIsRefused(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	if _, err := Open(s.dir, toy{}, testConfig(t)); err == nil {
		t.Error("a shard was opened twice")
	}
}
