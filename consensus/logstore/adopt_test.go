package logstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

func mustShared(t *testing.T, dir string) *Shared {
	t.Helper()
	fs, err := OpenFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenShared(SharedConfig{FS: fs, SegmentBytes: 1 << 18, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A log of the first kind is taken over whole, once, whatever an attempt that was killed left behind.
func TestAnOldLogIsTakenOver(t *testing.T) {
	root := t.TempDir()
	cfg := Config{Dir: filepath.Join(root, "g9"), Group: 9, Fatal: func(err error) { t.Error(err) }}
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old, err := openOld(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 700; i++ {
		if err := old.StoreLog(&raft.Log{Index: i, Term: 3, Data: []byte{byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	vote(t, old, 7, 6, "n2")
	if err := errors.Join(old.DeleteRange(1, 100), old.Close()); err != nil {
		t.Fatal(err)
	}

	s := mustShared(t, filepath.Join(root, "log"))
	if err := s.takeOver(cfg); err != nil { // and here the first attempt ends
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"after a killed attempt", "again", "with an old directory half removed"} {
		if what == "with an old directory half removed" {
			if err := os.Mkdir(filepath.Join(cfg.Dir, adoptedDir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		s = mustShared(t, filepath.Join(root, "log"))
		g, err := s.Adopt(cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if first, last := contents(t, g); first != 101 || last != 700 {
			t.Errorf("%s: entries %d to %d", what, first, last)
		}
		if v := voted(t, g); v != (votes{7, 6, "n2"}) {
			t.Errorf("%s: vote %+v", what, v)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(cfg.Dir)
		if err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
	}
}

func TestAnOldLogWithoutEntriesOrVoteIsTakenOver(t *testing.T) {
	root := t.TempDir()
	cfg := Config{Dir: root, Group: 2, Fatal: func(err error) { t.Error(err) }}
	old, err := openOld(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	s := mustShared(t, filepath.Join(root, "log"))
	defer s.Close()
	g, err := s.Adopt(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if first, last := contents(t, g); first != 0 || last != 0 {
		t.Errorf("entries %d to %d", first, last)
	}
}
