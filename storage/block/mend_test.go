package block

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"missingos/srv/dc"
)

// damage changes a byte of a block on disk.
func damage(t *testing.T, s *Store, at int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, "seg-00000001"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{b[0] ^ 1}, at); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedBlockIsReplaced(t *testing.T) {
	for _, tc := range []struct {
		name string
		at   func(place) int64
	}{
		{"data", func(p place) int64 { return p.offset() + dataOffset(p.bytes) + 70_000 }},
		{"header", func(p place) int64 { return p.offset() + 20 }},
		{"magic", func(p place) int64 { return p.offset() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, Config{Dir: dir})
			before, want, after := randomBytes(1, 5000), randomBytes(2, 200_000), randomBytes(3, 5000)
			mustPut(t, s, before)
			id := mustPut(t, s, want)
			last := mustPut(t, s, after)
			p, _ := s.find(id)
			damage(t, s, tc.at(p))
			if err := s.Verify(id); !errors.Is(err, dc.Corrupt) {
				t.Fatalf("got %v, want %v", err, dc.Corrupt)
			}
			bytes := s.Stats().Bytes
			if err := s.Replace(id, 99, want); err != nil {
				t.Fatal(err)
			}
			if now := s.Stats(); now.Blocks != 3 || now.Bytes != bytes {
				t.Fatalf("%+v, want 3 blocks of %d bytes", now, bytes)
			}
			check := func(s *Store) {
				t.Helper()
				mustRead(t, s, id, want)
				mustRead(t, s, last, after)
				if n := s.Stats(); n.Blocks != 3 || n.Bytes != bytes {
					t.Fatalf("%+v, want 3 blocks of %d bytes", n, bytes)
				}
			}
			check(s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, checkpointName)); err != nil { // as after a crash: everything is read anew
				t.Fatal(err)
			}
			s = open(t, Config{Dir: dir})
			defer s.Close()
			check(s)
		})
	}
}

func TestReplacePutsWhatIsNotThere(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	defer s.Close()
	id, want := s.NewID(), randomBytes(1, 100)
	if err := s.Replace(id, 1, want); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, id, want)
	if size, ok := s.Size(id); !ok || size != len(want) || s.Verify(id) != nil {
		t.Fatalf("size %d, %v", size, ok)
	}
}

func TestReplaceFreesSegmentsThatItEmpties(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), SegmentBytes: 64 * dc.KiB})
	defer s.Close()
	want := randomBytes(1, 40_000)
	id := mustPut(t, s, want)
	mustPut(t, s, randomBytes(2, 40_000))
	if err := s.Replace(id, 1, want); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, id, want)
	if _, err := os.Stat(s.segmentPath(1)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the empty segment is still there: %v", err)
	}
}
