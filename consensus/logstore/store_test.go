package logstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func open(t *testing.T, dir string) Store {
	t.Helper()
	s, err := openOld(Config{Dir: dir, Fatal: func(err error) { t.Error("fatal:", err) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fill(t *testing.T, s Store, first, last uint64) {
	t.Helper()
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 3, Data: []byte{byte(i)}})
	}
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

// contents gives the indices that are there; every one must have its own data.
func contents(t *testing.T, s Store) (first, last uint64) {
	t.Helper()
	first, err1 := s.FirstIndex()
	last, err2 := s.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for i := max(first, 1); i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil || l.Index != i || l.Term != 3 || len(l.Data) != 1 || l.Data[0] != byte(i) {
			t.Errorf("entry %d is %+v, %v", i, l, err)
		}
	}
	return first, last
}

func vote(t *testing.T, s Store, term, voteTerm uint64, candidate string) {
	t.Helper()
	err := errors.Join(s.SetUint64([]byte(keyTerm), term), s.SetUint64([]byte(keyVoteTerm), voteTerm), s.Set([]byte(keyCandidate), []byte(candidate)))
	if err != nil {
		t.Fatal(err)
	}
}

type votes struct {
	Term, VoteTerm uint64
	Candidate      string
}

func voted(t *testing.T, s raft.StableStore) votes {
	t.Helper()
	term, err1 := s.GetUint64([]byte(keyTerm))
	voteTerm, err2 := s.GetUint64([]byte(keyVoteTerm))
	candidate, err3 := s.Get([]byte(keyCandidate))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return votes{term, voteTerm, string(candidate)}
}

func TestEntriesAndVoteSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	fill(t, s, 1, 20)
	vote(t, s, 7, 6, "n2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	if first, last := contents(t, s); first != 1 || last != 20 {
		t.Errorf("the log holds %d..%d, want 1..20", first, last)
	}
	if diff := cmp.Diff(voted(t, s), votes{7, 6, "n2"}); diff != "" {
		t.Error(diff)
	}
	fill(t, s, 21, 21)
	if d := s.Stalled(); d != 0 {
		t.Errorf("a write has been under way for %v, but there is none", d)
	}
}

func TestDeleteRange(t *testing.T) {
	tests := []struct {
		name                    string
		from, to                uint64
		first, last, appendNext uint64
	}{
		{"prefix", 1, 12, 13, 20, 21},
		{"suffix", 15, 20, 1, 14, 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			fill(t, s, 1, 20)
			if err := s.DeleteRange(tt.from, tt.to); err != nil {
				t.Fatal(err)
			}
			for range 2 { // as it is, and opened again
				if first, last := contents(t, s); first != tt.first || last != tt.last {
					t.Errorf("the log holds %d..%d, want %d..%d", first, last, tt.first, tt.last)
				}
				var l raft.Log
				if err := s.GetLog(tt.last+1, &l); !errors.Is(err, raft.ErrLogNotFound) {
					t.Errorf("entry %d after the last: %v, want not found", tt.last+1, err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, dir)
			}
			fill(t, s, tt.appendNext, tt.appendNext)
			if _, last := contents(t, s); last != tt.appendNext {
				t.Errorf("the log ends at %d, want %d", last, tt.appendNext)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Raft stores a vote's term and its candidate one after the other. A crash between them must not leave the new term with the old candidate.
func TestAVoteIsOneRecord(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	vote(t, s, 5, 5, "n1")
	err := errors.Join(s.SetUint64([]byte(keyTerm), 6), s.SetUint64([]byte(keyVoteTerm), 6))
	if err != nil {
		t.Fatal(err)
	}
	crashed, err := OpenVote(filepath.Join(dir, "vote")) // what a process started now would find
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(voted(t, crashed), votes{6, 5, "n1"}); diff != "" {
		t.Error(diff)
	}
	if err := s.Set([]byte(keyCandidate), []byte("n3")); err != nil {
		t.Fatal(err)
	}
	if crashed, err = OpenVote(filepath.Join(dir, "vote")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(voted(t, crashed), votes{6, 6, "n3"}); diff != "" {
		t.Error(diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedVoteIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	vote(t, s, 5, 5, "n1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vote")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenVote(path); err == nil {
			t.Errorf("a vote %s is taken", what)
		}
	}
	for n := range len(whole) {
		refused("cut off", whole[:n])
		flipped := append([]byte(nil), whole...)
		flipped[n] ^= 0x10
		refused("with a flipped bit", flipped)
	}
	if _, err := openOld(Config{Dir: dir, Fatal: func(error) {}}); err == nil {
		t.Error("a log with a damaged vote opens")
	}
	// A file aside that a crash left behind is no vote.
	if err := errors.Join(os.WriteFile(path, whole, 0o600), os.WriteFile(path+".tmp", whole[:3], 0o600)); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	if diff := cmp.Diff(voted(t, s), votes{5, 5, "n1"}); diff != "" {
		t.Error(diff)
	}
}

func TestAFailedWriteIsFatal(t *testing.T) {
	tests := []struct {
		name  string
		write func(t *testing.T, s *walStore, dir string) error
	}{
		{"append", func(t *testing.T, s *walStore, _ string) error {
			if err := s.wal.Close(); err != nil {
				t.Fatal(err)
			}
			return s.StoreLog(&raft.Log{Index: 2, Term: 3})
		}},
		{"delete", func(t *testing.T, s *walStore, _ string) error {
			if err := s.wal.Close(); err != nil {
				t.Fatal(err)
			}
			return s.DeleteRange(1, 1)
		}},
		{"vote", func(t *testing.T, s *walStore, dir string) error {
			if err := os.Mkdir(filepath.Join(dir, "vote.tmp"), 0o700); err != nil {
				t.Fatal(err)
			}
			return s.SetUint64([]byte(keyTerm), 9)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			var fatal error
			opened, err := openOld(Config{Dir: dir, Fatal: func(err error) { fatal = err }})
			if err != nil {
				t.Fatal(err)
			}
			s, ok := opened.(*walStore)
			if !ok {
				t.Fatalf("a store of type %T", opened)
			}
			fill(t, s, 1, 1)
			if err := tt.write(t, s, dir); err == nil || fatal == nil {
				t.Errorf("the write answers %v and Fatal was told %v; want both to fail", err, fatal)
			}
			_ = s.Close()
			if tt.name == "vote" { // what was not written is not believed either
				if term, err := s.GetUint64([]byte(keyTerm)); err != nil || term != 0 {
					t.Errorf("term %d, %v after a failed write, want 0", term, err)
				}
			}
		})
	}
}
