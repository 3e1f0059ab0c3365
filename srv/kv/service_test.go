package kv_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/kv"
	"missingos/srv/replica"
	"missingos/storage"
	machine "missingos/storage/machine/kv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 5

// removed collects the tables that meta is told to forget.
type removed chan uint64

func (r removed) RemoveDescriptor(_ context.Context, _ string, id uint64) error { r <- id; return nil }

// store is the service on one replica in memory.
type store struct {
	*kv.Service
	rep  *replica.Memory
	gone removed
	seq  uint64
}

func newStore(t *testing.T) *store {
	s := &store{gone: make(removed, 8)}
	lead := &leading{}
	s.Service = kv.New(kv.Config{Replicas: lead, Descriptors: s.gone})
	s.rep = replica.NewMemory(group, s.Kind())
	lead.Memory = s.rep
	t.Cleanup(s.rep.Close)
	return s
}

// leading breaks the circle between a service and its replica.
type leading struct{ *replica.Memory }

func (s *store) header() *dcpb.Header {
	s.seq++
	return &dcpb.Header{Group: uint64(group), Client: 7, Seq: s.seq, Done: max(1, s.seq-1), IssuedMs: s.rep.Clock(), Principal: &dcpb.Principal{Node: 1, Uid: 1000, Gid: 100}}
}

func (s *store) put(t *testing.T, table uint64, key, value string) {
	t.Helper()
	if _, err := s.Put(t.Context(), &dcpb.KVPutRequest{Header: s.header(), Table: table, Key: []byte(key), Data: []byte(value), Mode: 0o640}); err != nil {
		t.Fatal(err)
	}
}

func TestADroppedTableIsSweptAtOnceAndItsDescriptorForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		for i := range 1200 { // more than one sweep takes
			s.put(t, 3, fmt.Sprint("k", i), "v")
		}
		s.put(t, 4, "other", "stays")
		synctest.Wait()
		start := time.Now()
		if _, err := s.Drop(t.Context(), &dcpb.KVDropRequest{Header: s.header(), Table: 3, OnlyIfEmpty: true}); !errors.Is(err, dc.NotEmpty) {
			t.Errorf("drop of a table with rows, only if empty: %v, want not empty", err)
		}
		if _, err := s.Drop(t.Context(), &dcpb.KVDropRequest{Header: s.header(), Table: 3}); err != nil {
			t.Fatal(err)
		}
		if id := <-s.gone; id != 3 {
			t.Errorf("table %d was forgotten, want 3", id)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("the sweep took %v", took)
		}
		if _, err := s.Get(t.Context(), &dcpb.KVGetRequest{Header: s.header(), Table: 3, Key: []byte("k1")}); !errors.Is(err, dc.NotFound) {
			t.Errorf("get from a dropped table: %v, want not found", err)
		}
		rows := 0
		err := s.rep.Local(func(r storage.Reader) error {
			for range machine.Scan(r, 3, machine.ScanSpec{}) {
				rows++
			}
			return nil
		})
		if err != nil || rows != 0 {
			t.Errorf("%d rows are left, %v", rows, err)
		}
		if _, err := s.Get(t.Context(), &dcpb.KVGetRequest{Header: s.header(), Table: 4, Key: []byte("other")}); err != nil {
			t.Errorf("another table's row: %v", err)
		}
	})
}

func TestASweepGoesOnUnderANewLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		for i := range 1200 {
			s.put(t, 3, fmt.Sprint("k", i), "v")
		}
		synctest.Wait()
		h := s.header()
		if _, err := s.Drop(t.Context(), &dcpb.KVDropRequest{Header: h, Table: 3}); err != nil {
			t.Fatal(err)
		}
		s.rep.Resign()
		if _, err := s.Drop(t.Context(), &dcpb.KVDropRequest{Header: h, Table: 3}); !errors.Is(err, dc.NotLeader) {
			t.Errorf("drop at a node that does not lead: %v", err)
		}
		s.rep.Lead()
		if id := <-s.gone; id != 3 {
			t.Errorf("table %d was forgotten, want 3", id)
		}
	})
}

func TestRowsKnowTheirMakerAndRetriesCountOnce(t *testing.T) {
	s := newStore(t)
	h := s.header()
	put := &dcpb.KVPutRequest{Header: h, Table: 3, Key: []byte("log"), How: 1, Data: []byte("x"), Mode: 0o640}
	for range 3 { // one request, sent three times
		if _, err := s.Put(t.Context(), put); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(t.Context(), &dcpb.KVGetRequest{Header: s.header(), Table: 3, Key: []byte("log"), Value: true})
	if err != nil || string(got.Value) != "x" {
		t.Fatalf("an append that was retried: %q, %v", got.GetValue(), err)
	}
	if r := got.Row; r.Uid != 1000 || r.Gid != 100 || r.Mode != 0o640 || r.Size != 1 || r.MtimeMs == 0 {
		t.Errorf("the row is %v", r)
	}
}

func TestWhatIsRefusedAtTheDoor(t *testing.T) {
	s := newStore(t)
	big := strings.Repeat("x", dc.MaxValueBytes+1)
	anonymous := s.header()
	anonymous.Principal = nil
	for name, test := range map[string]struct {
		put  *dcpb.KVPutRequest
		want dc.Kind
		text string
	}{
		"a value over 1 MiB":       {&dcpb.KVPutRequest{Key: []byte("k"), Data: []byte(big)}, dc.TooLarge, "1 MiB"},
		"a patch that reaches far": {&dcpb.KVPutRequest{Key: []byte("k"), How: 2, Offset: 1 << 40, Data: []byte("x")}, dc.TooLarge, "1 MiB"},
		"a key over 4 KiB":         {&dcpb.KVPutRequest{Key: []byte(strings.Repeat("k/", 2048) + "k")}, dc.NameTooLong, "4 KiB"},
		"a name over 255 bytes":    {&dcpb.KVPutRequest{Key: []byte(strings.Repeat("k", 256))}, dc.NameTooLong, "255"},
		"an empty key":             {&dcpb.KVPutRequest{}, dc.Invalid, "empty"},
		"an empty part":            {&dcpb.KVPutRequest{Key: []byte("a//b")}, dc.Invalid, "empty part"},
		"an unknown way":           {&dcpb.KVPutRequest{Key: []byte("k"), How: 99}, dc.Invalid, "99"},
		"no principal":             {&dcpb.KVPutRequest{Key: []byte("k"), Header: anonymous}, dc.Denied, "names no node"},
	} {
		if test.put.Header == nil {
			test.put.Header = s.header()
		}
		test.put.Table = 3
		if _, err := s.Put(t.Context(), test.put); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %v naming %q", name, err, test.want, test.text)
		}
	}
}

// Rows go when their time is over, whoever leads then; nothing is proposed before.
func TestRowsExpireOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		there := func(key string) bool {
			t.Helper()
			_, err := s.Get(t.Context(), &dcpb.KVGetRequest{Header: s.header(), Table: 3, Key: []byte(key)})
			if err != nil && !errors.Is(err, dc.NotFound) {
				t.Fatal(err)
			}
			return err == nil
		}
		expires := func(key string, ttl time.Duration) {
			t.Helper()
			ms := ttl.Milliseconds()
			if _, err := s.SetAttr(t.Context(), &dcpb.KVSetAttrRequest{Header: s.header(), Table: 3, Key: []byte(key), TtlMs: &ms}); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range []string{"hour", "minute", "second", "stays"} {
			s.put(t, 3, key, "v")
		}
		expires("hour", time.Hour)
		expires("minute", time.Minute)
		expires("second", time.Second)
		time.Sleep(990 * time.Millisecond)
		if !there("second") {
			t.Error("a row went early")
		}
		time.Sleep(20 * time.Millisecond)
		if there("second") || !there("minute") {
			t.Error("after a second: ", there("second"), there("minute"))
		}
		expires("hour", 30*time.Second) // sooner than was said
		s.put(t, 3, "minute", "again")  // a new value, for ever
		time.Sleep(29 * time.Second)
		s.rep.Resign()
		time.Sleep(5 * time.Second)
		s.rep.Lead()
		time.Sleep(time.Second)
		if there("hour") {
			t.Error("a row whose time was over while nobody led is still there")
		}
		time.Sleep(2 * time.Hour)
		if !there("stays") || !there("minute") {
			t.Error("a row went that had no end")
		}
	})
}
