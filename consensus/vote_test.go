package consensus

import (
	"slices"
	"sync"
	"testing"

	"missingos/consensus/logstore"
	"missingos/consensus/logstore/simdisk"
	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// torn writes a vote's term when Raft says it, as a store would that keeps a vote in more than one record.
type torn struct{ ownLog }

func (s torn) SetUint64(key []byte, v uint64) error {
	if err := s.Store.SetUint64(key, v); err != nil || string(key) != "LastVoteTerm" {
		return err
	}
	candidate, err := s.Get([]byte("LastVoteCand"))
	if err != nil {
		return nil // none yet
	}
	return s.Set([]byte("LastVoteCand"), candidate)
}

// voter is one replica of three whose log is on disk, and which the test asks for votes.
func voter(t *testing.T, disk *simdisk.Disk, tear bool) transport.RaftClient {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), time: fast, nodes: map[dc.NodeID]*member{}}
	c.log = func(cfg logstore.Config) (logstore.Store, error) {
		s, err := logstore.OpenShared(logstore.SharedConfig{FS: disk, Fatal: cfg.Fatal})
		if err != nil {
			return nil, err
		}
		own := ownLog{s.Open(cfg.Group), s}
		if tear {
			return torn{own}, nil
		}
		return own, nil
	}
	m := c.start(1, &journal{}, []dc.NodeID{1, 2, 3})
	t.Cleanup(c.stopAll)
	cc, err := c.dial(m, 1)
	if err != nil {
		t.Fatal(err)
	}
	return transport.NewRaftClient(cc)
}

func ask(t *testing.T, r transport.RaftClient, from, term, last, lastTerm uint64) bool {
	t.Helper()
	v, err := r.Vote(t.Context(), &transport.VoteRequest{From: from, Group: uint64(testGroup), Term: term, LastIndex: last, LastTerm: lastTerm, Transfer: true})
	if err != nil {
		t.Fatal(err)
	}
	return v.Granted
}

// crashInVote has a replica that once voted for n2 crash at each write of a vote for n3, and tells at how many of them it then votes in that same
// term for n2, whose log is behind.
func crashInVote(t *testing.T, tear bool) (granted, crashes int) {
	disk := simdisk.New()
	var mu sync.Mutex
	var watching bool
	var left []*simdisk.Disk
	r := voter(t, disk, tear)
	if !ask(t, r, 2, 5, 1, 1) {
		t.Fatal("n2 does not get the first vote")
	}
	reply, err := r.Append(t.Context(), &transport.AppendRequest{From: 2, Group: uint64(testGroup), Term: 5, PrevIndex: 1, PrevTerm: 1, Entries: []*transport.Entry{noop(2, 5), noop(3, 5)}})
	if err != nil || !reply.Success {
		t.Fatal(reply, err)
	}
	disk.Watch(func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if watching && op == "sync" {
			left = append(left, disk.Kill())
		}
		return nil
	})
	mu.Lock()
	watching = true
	mu.Unlock()
	if !ask(t, r, 3, 7, 3, 5) {
		t.Fatal("n3 does not get its vote")
	}
	mu.Lock()
	watching = false
	all := slices.Clone(left)
	mu.Unlock()
	for _, d := range all {
		if ask(t, voter(t, d, tear), 2, 7, 1, 1) {
			granted++
		}
	}
	return granted, len(all)
}

func TestAVoteTornByACrashIsNotGivenToAnother(t *testing.T) {
	if granted, crashes := crashInVote(t, false); granted > 0 || crashes < 2 {
		t.Errorf("a replica whose vote was torn voted for a candidate that is behind after %d of %d crashes", granted, crashes)
	}
	if granted, _ := crashInVote(t, true); granted == 0 {
		t.Error("with the vote in more than one record the test finds nothing: it is worth nothing")
	}
}
