package logstore

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// A follower whose log was cut back because a new leader has another one must be able to start again, again and again.
func TestLogOpensAgainAfterItsSuffixWasRemoved(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Fatal: func(err error) { t.Fatal(err) }}
	want := map[uint64]string{}
	for round := range 4 {
		s, err := openOld(cfg)
		if err != nil {
			t.Fatal(err)
		}
		last, err := s.LastIndex()
		if err != nil || last != uint64(len(want)) {
			t.Fatalf("round %d: the log ends at %d, %v, want %d", round, last, err, len(want))
		}
		for index, data := range want {
			var log raft.Log
			if err := s.GetLog(index, &log); err != nil || string(log.Data) != data {
				t.Fatalf("round %d: entry %d is %q, %v, want %q", round, index, log.Data, err, data)
			}
		}
		appendLogs := func(first, last uint64, leader string) {
			for index := first; index <= last; index++ {
				want[index] = fmt.Sprintf("%d of leader %s", index, leader)
				if err := s.StoreLog(&raft.Log{Index: index, Term: uint64(round + 1), Data: []byte(want[index])}); err != nil {
					t.Fatal(err)
				}
			}
		}
		appendLogs(last+1, last+10, "old")
		if err := s.DeleteRange(last+6, last+10); err != nil {
			t.Fatal(err)
		}
		for index := last + 6; index <= last+10; index++ {
			delete(want, index)
		}
		if round != 2 { // once, nothing follows
			appendLogs(last+6, last+8, "new")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
