package kv_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/kv"
	"missingos/srv/replica"
)

// shape writes a table's ranges: id.epoch[start,end)rows/bytes.
func (s *store) shape(t *testing.T, table uint64) string {
	t.Helper()
	st, err := s.Stat(t.Context(), &dcpb.KVStatRequest{Header: s.header(), Table: table})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	rows := uint64(0)
	for _, g := range st.Ranges {
		out = append(out, fmt.Sprintf("%d.%d[%s,%s)%d/%d", g.Id, g.Epoch, g.Start, g.End, g.Rows, g.Bytes))
		rows += g.Rows
	}
	if rows != st.Rows {
		t.Errorf("the ranges hold %d rows, the table %d", rows, st.Rows)
	}
	return strings.Join(out, " ")
}

func TestASplitCountsItsPartsAndARetryIsAnsweredOnce(t *testing.T) {
	s := newStore(t)
	for i := range 3000 {
		s.put(t, 3, fmt.Sprintf("k%04d", i), "v")
	}
	split := &dcpb.KVSplitRequest{Header: s.header(), Table: 3, Key: []byte("k1000")}
	for range 3 { // one request, sent three times
		if _, err := s.Split(t.Context(), split); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Split(t.Context(), &dcpb.KVSplitRequest{Header: s.header(), Table: 3, Key: []byte("k0500")}); err != nil {
		t.Fatal(err)
	}
	if got := s.shape(t, 3); got != "1.3[,k0500)500/3000 3.3[k0500,k1000)500/3000 2.2[k1000,)2000/12000" {
		t.Errorf("the table is %s", got)
	}
	if _, err := s.Split(t.Context(), &dcpb.KVSplitRequest{Header: s.header(), Table: 3, Key: []byte("k1000")}); !errors.Is(err, dc.Exists) {
		t.Errorf("the same split, asked again: %v", err)
	}
}

// A put that was applied before a split, whose answer was lost, and that is sent again after it, is not done twice.
func TestARetryOverASplitCountsOnce(t *testing.T) {
	s := newStore(t)
	put := &dcpb.KVPutRequest{Header: s.header(), Table: 3, Key: []byte("log"), How: 1, Data: []byte("x"), Mode: 0o640}
	for _, key := range []string{"l", "log", "m"} {
		if _, err := s.Put(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		h := s.header()
		h.Done = put.Header.Seq // its answer is still awaited
		if _, err := s.Split(t.Context(), &dcpb.KVSplitRequest{Header: h, Table: 3, Key: []byte(key)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	if got := s.shape(t, 3); got != "1.2[,l)0/0 2.3[l,log)0/0 3.4[log,m)1/4 4.4[m,)0/0" {
		t.Errorf("the table is %s", got)
	}
}

func TestASplitIsRefusedWhileANodeIsTooOld(t *testing.T) {
	lead := &leading{}
	s := &store{Service: kv.New(kv.Config{Replicas: lead, Ranges: func() error { return dc.Errorf(dc.Unsupported, "ranges", "", "a node is old") }})}
	s.rep = replica.NewMemory(group, s.Kind())
	lead.Memory = s.rep
	t.Cleanup(s.rep.Close)
	s.put(t, 3, "a", "v")
	if _, err := s.Split(t.Context(), &dcpb.KVSplitRequest{Header: s.header(), Table: 3, Key: []byte("m")}); !errors.Is(err, dc.Unsupported) {
		t.Errorf("a split: %v", err)
	}
	if got := s.shape(t, 3); got != "1.1[,)1/2" {
		t.Errorf("the table is %s", got)
	}
}
