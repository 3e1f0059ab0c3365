package block

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	cfg.Node = 7
	if cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = 1
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func mustPut(t *testing.T, s *Store, data []byte) file.BlockID {
	t.Helper()
	id := s.NewID()
	if err := s.Put(id, 99, data); err != nil {
		t.Fatal(err)
	}
	return id
}

func mustRead(t *testing.T, s *Store, id file.BlockID, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+10)
	n, err := s.Read(id, 0, got)
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Fatalf("block %s: %d bytes, %v; want the %d put", id, n, err, len(want))
	}
}

func wantKind(t *testing.T, err error, kind dc.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
}

// clone copies the files as a crashed machine would find them.
func clone(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(n)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestReadGivesWhatWasPut(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), SegmentBytes: 6 * dc.MiB})
	for i, n := range []int{1, 4023, 4024, 4025, file.ChecksumBytes - 1, file.ChecksumBytes, file.ChecksumBytes + 1, 300_000, dc.MaxBlockBytes, 5} {
		data := randomBytes(uint64(i), n)
		id := mustPut(t, s, data)
		mustRead(t, s, id, data)
		for _, off := range []int{0, 1, n / 2, n - 1, file.ChecksumBytes} {
			for _, size := range []int{1, 4096, file.ChecksumBytes} {
				dst := make([]byte, size)
				got, err := s.Read(id, int64(off), dst)
				want := data[min(off, n):min(off+size, n)]
				if err != nil || !bytes.Equal(dst[:got], want) {
					t.Fatalf("%d bytes at %d of %d: %v", size, off, n, err)
				}
			}
		}
		if ino, _, ok := s.Info(id); !ok || ino != 99 {
			t.Fatalf("info: inode %v, %v", ino, ok)
		}
	}
	wantKind(t, s.Put(s.NewID(), 1, nil), dc.Invalid)
	wantKind(t, s.Put(s.NewID(), 1, make([]byte, dc.MaxBlockBytes+1)), dc.Invalid)
	_, err := s.Read(s.NewID(), 0, make([]byte, 1))
	wantKind(t, err, dc.NotFound)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBlocksSurviveRestartAndKill(t *testing.T) {
	dir := t.TempDir()
	want := map[file.BlockID][]byte{}
	for round := range 4 {
		s := open(t, Config{Dir: dir, SegmentBytes: dc.MiB})
		for i := range 20 {
			data := randomBytes(uint64(round*100+i), 1+i*9000)
			want[mustPut(t, s, data)] = data
		}
		if round == 1 {
			if err := s.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if round%2 == 0 { // killed: no close, the files as they are
			next := clone(t, dir)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			dir = next
		} else if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(want) != 80 {
		t.Fatalf("%d ids for 80 blocks: an id was used twice", len(want))
	}
	s := open(t, Config{Dir: dir, SegmentBytes: dc.MiB})
	defer s.Close()
	for id, data := range want {
		mustRead(t, s, id, data)
	}
	if st := s.Stats(); st.Blocks != 80 || len(s.Blocks()) != 80 {
		t.Fatalf("stats %+v", st)
	}
}

func TestTornTailIsCutAndWritingGoesOn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	first := randomBytes(1, 10_000)
	id := mustPut(t, s, first)
	torn := mustPut(t, s, randomBytes(2, 100_000))
	whole := clone(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	end := recordBytes(10_000) + dataOffset(100_000) + 100_000
	for _, cut := range []int64{1, 50_000, 99_999, 100_000 + 20, 100_000 + dataOffset(100_000) - 1} {
		dir := clone(t, whole)
		if err := os.Truncate(filepath.Join(dir, "seg-00000001"), end-cut); err != nil {
			t.Fatal(err)
		}
		s := open(t, Config{Dir: dir})
		mustRead(t, s, id, first)
		_, err := s.Read(torn, 0, make([]byte, 1))
		wantKind(t, err, dc.NotFound)
		again := randomBytes(3, 70_000)
		id2 := mustPut(t, s, again)
		dir2 := clone(t, dir)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, Config{Dir: dir2})
		mustRead(t, s, id2, again)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPagesLostInTheMiddleLoseOnlyTheirBlock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	var ids []file.BlockID
	var data [][]byte
	for i := range 5 {
		data = append(data, randomBytes(uint64(i), 20_000))
		ids = append(ids, mustPut(t, s, data[i]))
	}
	crashed := clone(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, lost := range []int64{0, 2 * align} { // the header, or a page of data, of the third
		dir := clone(t, crashed)
		f, err := os.OpenFile(filepath.Join(dir, "seg-00000001"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, align), 2*recordBytes(20_000)+lost); err != nil {
			t.Fatal(err)
		}
		f.Close()
		s := open(t, Config{Dir: dir})
		for i, id := range ids {
			if i == 2 {
				_, err := s.Read(id, 0, make([]byte, 1))
				wantKind(t, err, dc.NotFound)
				continue
			}
			mustRead(t, s, id, data[i])
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	data := randomBytes(1, 200_000)
	id := mustPut(t, s, data)
	f, err := os.OpenFile(filepath.Join(dir, "seg-00000001"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{data[150_000] ^ 4}, dataOffset(200_000)+150_000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if n, err := s.Read(id, 0, make([]byte, 1000)); n != 1000 || err != nil {
		t.Fatalf("the part before the damage: %d, %v", n, err)
	}
	_, err = s.Read(id, 149_000, make([]byte, 10))
	wantKind(t, err, dc.Corrupt)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, checkpointName), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir}) // no checkpoint: the scan verifies, and finds the block damaged
	_, err = s.Read(id, 0, make([]byte, 10))
	wantKind(t, err, dc.NotFound)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityName), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Node: 7}); err == nil {
		t.Fatal("a damaged identity was accepted: ids could repeat")
	}
}

func TestDeleteGivesRoomBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, SegmentBytes: 2 * dc.MiB})
	var ids []file.BlockID
	for i := range 8 {
		ids = append(ids, mustPut(t, s, randomBytes(uint64(i), 500_000)))
	}
	kept := mustPut(t, s, []byte("kept"))
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(append(ids, s.NewID())); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	var used int64
	names, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Stat(n, &st); err != nil {
			t.Fatal(err)
		}
		used += st.Blocks * 512
	}
	if used > 100_000 || s.Stats().Blocks != 1 {
		t.Fatalf("%d bytes in %d segments are left of 8 deleted blocks", used, len(names))
	}
	crashed := clone(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: crashed}) // its checkpoint still lists the deleted blocks
	defer s.Close()
	mustRead(t, s, kept, []byte("kept"))
	for _, id := range ids {
		_, err := s.Read(id, 0, make([]byte, 1))
		wantKind(t, err, dc.NotFound)
	}
	if st := s.Stats(); st.Blocks != 1 {
		t.Fatalf("%+v", st)
	}
}

func TestFullStoreRefusesAndRecovers(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), MaxBytes: dc.MiB})
	defer s.Close()
	var ids []file.BlockID
	var err error
	for err == nil {
		id := s.NewID()
		if err = s.Put(id, 1, randomBytes(1, 100_000)); err == nil {
			ids = append(ids, id)
		}
	}
	wantKind(t, err, dc.NoSpace)
	if len(ids) != 10 {
		t.Fatalf("%d blocks of 100 kB fit 1 MiB", len(ids))
	}
	if err := s.Delete(ids[:1]); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, randomBytes(2, 100_000))
}

func TestPutTwiceKeepsOne(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	defer s.Close()
	id, data := s.NewID(), randomBytes(1, 5000)
	for range 3 {
		if err := s.Put(id, 1, data); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); st.Blocks != 1 || st.Bytes != recordBytes(5000) {
		t.Fatalf("%+v", st)
	}
}

func TestManyWritersReadersAndSyncs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, SegmentBytes: dc.MiB})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 30 {
				data := randomBytes(uint64(w*1000+i), 1000+i*1500)
				id := s.NewID()
				if err := s.Put(id, 1, data); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, len(data))
				if n, err := s.Read(id, 0, got); err != nil || !bytes.Equal(got[:n], data) {
					t.Errorf("read back: %v", err)
				}
				if i%10 == 0 {
					if err := s.Sync(); err != nil {
						t.Error(err)
					}
				}
				if i%3 == 0 {
					if err := s.Delete([]file.BlockID{id}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.Blocks != 8*20 {
		t.Errorf("%d blocks are left, want %d", st.Blocks, 8*20)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir, SegmentBytes: dc.MiB})
	defer s.Close()
	if st := s.Stats(); st.Blocks != 8*20 {
		t.Errorf("%d blocks after reopening, want %d", st.Blocks, 8*20)
	}
}
