package datafs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRandomFileOperations does what fsx does: random reads, writes, truncates, holes, maps and reopenings of one file against a
// copy in memory; every so often another node compares the whole.
func TestRandomFileOperations(t *testing.T) {
	a, b := two(t)
	const maxSize = 200_000
	rounds, ops := 5, 120
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		r := rand.New(rand.NewPCG(uint64(round), 7))
		name := "/f" + string(rune('a'+round))
		x := &exerciser{t: t, r: r, path: a + name}
		x.open(os.O_CREATE)
		for range ops {
			x.step(maxSize)
		}
		check(t, x.f.Close())
		got, err := os.ReadFile(b + name)
		check(t, err)
		x.compare("the other node", got, x.want)
	}
}

type exerciser struct {
	t    *testing.T
	r    *rand.Rand
	path string
	f    *os.File
	want []byte
	log  []string
}

func (x *exerciser) note(s string) { x.log = append(x.log, s) }

func (x *exerciser) open(flags int) {
	f, err := os.OpenFile(x.path, os.O_RDWR|flags, 0o644)
	check(x.t, err)
	x.f = f
}

func (x *exerciser) compare(where string, got, want []byte) {
	x.t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	x.t.Fatalf("%s: %d bytes, want %d; they differ from offset %d on; after %v", where, len(got), len(want), at, x.log)
}

func (x *exerciser) bytes(most int) []byte {
	p := make([]byte, 1+x.r.IntN(most))
	for i := range p {
		p[i] = byte(1 + x.r.IntN(255))
	}
	return p
}

func (x *exerciser) put(off int, p []byte) {
	if grow := off + len(p) - len(x.want); grow > 0 {
		x.want = append(x.want, make([]byte, grow)...)
	}
	copy(x.want[off:], p)
}

func (x *exerciser) step(maxSize int) {
	off := x.r.IntN(maxSize)
	switch x.r.IntN(12) {
	case 0, 1, 2:
		x.note("write")
		p := x.bytes(30_000)
		_, err := x.f.WriteAt(p, int64(off))
		check(x.t, err)
		x.put(off, p)
	case 3:
		x.note("small write")
		off = x.r.IntN(len(x.want) + 1)
		p := x.bytes(300)
		_, err := x.f.WriteAt(p, int64(off))
		check(x.t, err)
		x.put(off, p)
	case 4, 5:
		x.note("read")
		buf := make([]byte, 1+x.r.IntN(60_000))
		n, err := x.f.ReadAt(buf, int64(off))
		if err != nil && !errors.Is(err, io.EOF) {
			x.t.Fatal(err)
		}
		x.compare("read", buf[:n], x.want[min(off, len(x.want)):min(off+len(buf), len(x.want))])
	case 6:
		x.note("truncate")
		check(x.t, x.f.Truncate(int64(off)))
		if off <= len(x.want) {
			x.want = x.want[:off:off]
		} else {
			x.put(off-1, []byte{0})
		}
	case 7:
		x.note("sync")
		check(x.t, x.f.Sync())
	case 8:
		x.note("reopen")
		check(x.t, x.f.Close())
		x.open(0)
	case 9:
		x.note("append")
		f, err := os.OpenFile(x.path, os.O_WRONLY|os.O_APPEND, 0)
		check(x.t, err)
		p := x.bytes(5000)
		_, err = f.Write(p)
		check(x.t, err)
		if x.r.IntN(2) == 0 {
			x.put(len(x.want), p)
			check(x.t, f.Close())
			break
		}
		x.put(len(x.want), p)
		got, err := os.ReadFile(x.path)
		check(x.t, err)
		x.compare("before the appender closes", got, x.want)
		check(x.t, f.Close())
	case 10:
		x.note("punch")
		n := 1 + x.r.IntN(20_000)
		check(x.t, unix.Fallocate(int(x.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
		if off < len(x.want) {
			clear(x.want[off:min(off+n, len(x.want))])
		}
	case 11:
		x.note("mmap")
		if len(x.want) == 0 {
			return
		}
		at := x.r.IntN(len(x.want))
		p := x.bytes(min(3000, len(x.want)-at))
		x.compare("mapping", mapped(x.t, x.path, at, p), x.want)
		n := len(p)
		x.put(at, p[:n])
	}
	if x.r.IntN(5) == 0 {
		got, err := os.ReadFile(x.path)
		check(x.t, err)
		x.compare("whole", got, x.want)
	}
}

func TestHolesAreFoundAndTakeNoRoom(t *testing.T) {
	a, _ := two(t)
	f, err := os.Create(a + "/sparse")
	check(t, err)
	defer f.Close()
	const size = 100 << 30
	block := bytes.Repeat([]byte("data"), 5000)
	for _, off := range []int64{1 << 30, 50 << 30} {
		_, err := f.WriteAt(block, off)
		check(t, err)
	}
	check(t, f.Truncate(size))
	st := &unix.Stat_t{}
	check(t, unix.Fstat(int(f.Fd()), st))
	if st.Size != size || st.Blocks*512 < 40_000 || st.Blocks*512 > 50_000 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
	end := int64(1<<30 + len(block))
	for _, tt := range []struct {
		whence    int
		off, want int64
	}{
		{unix.SEEK_DATA, 0, 1 << 30},
		{unix.SEEK_HOLE, 0, 0},
		{unix.SEEK_HOLE, 1 << 30, end},
		{unix.SEEK_DATA, end, 50 << 30},
		{unix.SEEK_HOLE, 50 << 30, 50<<30 + int64(len(block))},
	} {
		if got, err := unix.Seek(int(f.Fd()), tt.off, tt.whence); err != nil || got != tt.want {
			t.Errorf("seek %d from %d: %d, %v; want %d", tt.whence, tt.off, got, err, tt.want)
		}
	}
	if _, err := unix.Seek(int(f.Fd()), 60<<30, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("data after the last: %v", err)
	}
	buf := make([]byte, 8)
	if _, err := f.ReadAt(buf, 50<<30-4); err != nil || string(buf) != "\x00\x00\x00\x00data" {
		t.Errorf("%q, %v", buf, err)
	}
}
