package datafs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/data/datatest"
	"missingos/srv/dc"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(content), 0o644))
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s: %d bytes %.60q, %v; want %d bytes %.60q", filepath.Base(path), len(got), got, err, len(want), want)
	}
}

// pattern is n bytes that differ from place to place.
func pattern(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%08d", i)
	}
	return b.String()[:n]
}

// TestEachChangeIsSeenByTheNextCallOnTheOtherNode goes through changes made on node a, each with an observer on node b that has looked before.
func TestEachChangeIsSeenByTheNextCallOnTheOtherNode(t *testing.T) {
	a, b := two(t)
	big := pattern(300_000)
	var fd *os.File // node b's descriptor, opened before the change
	readAll := func(t *testing.T) string {
		t.Helper()
		got, err := io.ReadAll(io.NewSectionReader(fd, 0, 1<<30))
		check(t, err)
		return string(got)
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		seen   func(t *testing.T, dir string)
	}{
		{"create", func(t *testing.T, d string) { write(t, d+"/new", "") }, func(t *testing.T, d string) { wantContent(t, d+"/new", "") }},
		{"write and close", func(t *testing.T, d string) { write(t, d+"/f", "changed") }, func(t *testing.T, d string) { wantContent(t, d+"/f", "changed") }},
		{"write seen by an open descriptor", func(t *testing.T, d string) { write(t, d+"/f", "changed") }, func(t *testing.T, _ string) {
			if got := readAll(t); got != "changed" {
				t.Errorf("got %q", got)
			}
		}},
		{"same size", func(t *testing.T, d string) { write(t, d+"/f", "BEFORE") }, func(t *testing.T, _ string) {
			if got := readAll(t); got != "BEFORE" {
				t.Errorf("got %q", got)
			}
		}},
		{"large", func(t *testing.T, d string) { write(t, d+"/f", big) }, func(t *testing.T, d string) {
			wantContent(t, d+"/f", big)
			if got := readAll(t); got != big {
				t.Errorf("descriptor: %d bytes", len(got))
			}
		}},
		{"fsync while open", func(t *testing.T, d string) {
			f, err := os.OpenFile(d+"/f", os.O_WRONLY|os.O_TRUNC, 0)
			check(t, err)
			t.Cleanup(func() { f.Close() })
			_, err = f.WriteString("synced")
			check(t, err)
			check(t, f.Sync())
		}, func(t *testing.T, d string) { wantContent(t, d+"/f", "synced") }},
		{"append", func(t *testing.T, d string) {
			f, err := os.OpenFile(d+"/f", os.O_WRONLY|os.O_APPEND, 0)
			check(t, err)
			_, err = f.WriteString(" and after")
			check(t, errors.Join(err, f.Close()))
		}, func(t *testing.T, d string) {
			wantContent(t, d+"/f", "before and after")
			if got := readAll(t); got != "before and after" {
				t.Errorf("got %q", got)
			}
		}},
		{"truncate", func(t *testing.T, d string) { check(t, os.Truncate(d+"/f", 3)) }, func(t *testing.T, d string) {
			wantContent(t, d+"/f", "bef")
			if st, err := fd.Stat(); err != nil || st.Size() != 3 {
				t.Errorf("%v, %v", st, err)
			}
		}},
		{"rename over", func(t *testing.T, d string) {
			write(t, d+"/tmp", "replaced")
			check(t, os.Rename(d+"/tmp", d+"/f"))
		}, func(t *testing.T, d string) {
			wantContent(t, d+"/f", "replaced")
			if got := readAll(t); got != "before" {
				t.Errorf("the descriptor of the replaced file reads %q", got)
			}
		}},
		{"rename dir", func(t *testing.T, d string) { check(t, os.Rename(d+"/sub", d+"/moved")) }, func(t *testing.T, d string) {
			wantContent(t, d+"/moved/in", "x")
			if _, err := os.Stat(d + "/sub"); !os.IsNotExist(err) {
				t.Error(err)
			}
		}},
		{"unlink", func(t *testing.T, d string) { check(t, os.Remove(d+"/f")) }, func(t *testing.T, d string) {
			if _, err := os.Stat(d + "/f"); !os.IsNotExist(err) {
				t.Error(err)
			}
			if got := readAll(t); got != "before" {
				t.Errorf("the open file reads %q", got)
			}
			if st, err := fd.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 0 {
				t.Errorf("%v, %v", st, err)
			}
		}},
		{"link", func(t *testing.T, d string) { check(t, os.Link(d+"/f", d+"/g")) }, func(t *testing.T, d string) {
			wantContent(t, d+"/g", "before")
			if st, err := fd.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 2 {
				t.Errorf("%v, %v", st, err)
			}
		}},
		{"chmod", func(t *testing.T, d string) { check(t, os.Chmod(d+"/f", 0o600)) }, func(t *testing.T, d string) {
			if st, err := os.Stat(d + "/f"); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", st, err)
			}
		}},
		{"chown", func(t *testing.T, d string) { check(t, os.Chown(d+"/f", 12, 34)) }, func(t *testing.T, d string) {
			if st, err := fd.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Uid != 12 || st.Sys().(*syscall.Stat_t).Gid != 34 {
				t.Errorf("%v, %v", st, err)
			}
		}},
		{"utimes", func(t *testing.T, d string) {
			check(t, os.Chtimes(d+"/f", time.Unix(5, 6), time.Unix(7, 8)))
		}, func(t *testing.T, d string) {
			if st, err := os.Stat(d + "/f"); err != nil || !st.ModTime().Equal(time.Unix(7, 8)) {
				t.Errorf("%v, %v", st.ModTime(), err)
			}
		}},
		{"setxattr", func(t *testing.T, d string) { check(t, unix.Setxattr(d+"/f", "user.k", []byte("v"), 0)) }, func(t *testing.T, d string) {
			var buf [8]byte
			if n, err := unix.Getxattr(d+"/f", "user.k", buf[:]); err != nil || string(buf[:n]) != "v" {
				t.Errorf("%q, %v", buf[:max(n, 0)], err)
			}
		}},
		{"mkdir", func(t *testing.T, d string) { check(t, os.Mkdir(d+"/made", 0o755)) }, func(t *testing.T, d string) {
			if names := list(t, d); !slices.Contains(names, "made") {
				t.Errorf("%v", names)
			}
		}},
		{"rmdir", func(t *testing.T, d string) { check(t, os.RemoveAll(d+"/sub")) }, func(t *testing.T, d string) {
			if names := list(t, d); slices.Contains(names, "sub") {
				t.Errorf("%v", names)
			}
		}},
		{"symlink swap", func(t *testing.T, d string) {
			check(t, os.Symlink("elsewhere", d+"/tmp"))
			check(t, os.Rename(d+"/tmp", d+"/link"))
		}, func(t *testing.T, d string) {
			if to, err := os.Readlink(d + "/link"); err != nil || to != "elsewhere" {
				t.Errorf("%q, %v", to, err)
			}
		}},
		{"mmap", func(t *testing.T, d string) { write(t, d+"/f", "MAPPED") }, func(t *testing.T, _ string) {
			if m := mapped(t, fd.Name(), 0, nil); string(m) != "MAPPED" {
				t.Errorf("mapped %q", m)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := strings.ReplaceAll(tt.name, " ", "-")
			check(t, os.MkdirAll(filepath.Join(a, dir, "sub"), 0o755))
			write(t, filepath.Join(a, dir, "f"), "before")
			write(t, filepath.Join(a, dir, "sub/in"), "x")
			check(t, os.Symlink("f", filepath.Join(a, dir, "link")))
			other := filepath.Join(b, dir)
			var err error
			if fd, err = os.Open(other + "/f"); err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			readAll(t)
			list(t, other)
			for _, name := range []string{"new", "made", "moved", "g", "link", "f", "sub"} {
				_, _ = os.Stat(filepath.Join(other, name))
			}
			tt.change(t, filepath.Join(a, dir))
			tt.seen(t, other)
		})
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestWritesAreSeenByOtherProcessesOfTheNodeAtOnceAndElsewhereSoon(t *testing.T) {
	a, b := two(t)
	f, err := os.Create(a + "/f")
	check(t, err)
	defer f.Close()
	for i := range 3 {
		_, err = fmt.Fprintf(f, "line %d\n", i)
		check(t, err)
		wantContent(t, a+"/f", "line 0\nline 1\nline 2\n"[:7*(i+1)])
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if got, _ := os.ReadFile(b + "/f"); string(got) == "line 0\nline 1\nline 2\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("data written on one node and not flushed has not reached the other in 10 s")
		}
	}
}

func TestAppendersOnTwoNodesInterleaveWholeLines(t *testing.T) {
	a, b := two(t)
	write(t, a+"/log", "")
	const writers, lines = 2, 60
	var wg sync.WaitGroup
	for w, dir := range []string{a, b, a, b} {
		wg.Go(func() {
			f, err := os.OpenFile(dir+"/log", os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range lines {
				if _, err := fmt.Fprintf(f, "%d %d %s\n", w, i, strings.Repeat("x", 100+i*20)); err != nil {
					t.Error(err)
				}
				if i%7 == 0 {
					if err := f.Close(); err != nil {
						t.Error(err)
					}
					if f, err = os.OpenFile(dir+"/log", os.O_WRONLY|os.O_APPEND, 0); err != nil {
						t.Error(err)
						return
					}
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, dir := range []string{a, b} {
		got, err := os.ReadFile(dir + "/log")
		check(t, err)
		next := map[int]int{}
		for line := range strings.Lines(string(got)) {
			var w, i int
			var x string
			if _, err := fmt.Sscanf(line, "%d %d %s", &w, &i, &x); err != nil || next[w] != i || len(x) != 100+i*20 {
				t.Fatalf("line %.30q: %v, want line %d of writer %d", line, err, next[w], w)
			}
			next[w]++
		}
		if len(next) != 2*writers || next[0]+next[1]+next[2]+next[3] != 2*writers*lines {
			t.Fatalf("lines by writer: %v", next)
		}
	}
}

func TestAFollowerSeesAppendedLinesOnce(t *testing.T) {
	a, _ := two(t)
	w, err := os.OpenFile(a+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	check(t, err)
	r, err := os.Open(a + "/log")
	check(t, err)
	defer r.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stop)
		for i := range 400 {
			if _, err := fmt.Fprintf(w, "%06d\n", i); err != nil {
				t.Error(err)
			}
			if i%20 == 0 {
				if err := w.Sync(); err != nil {
					t.Error(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	var got bytes.Buffer
	size := int64(0)
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		st, err := r.Stat()
		check(t, err)
		if st.Size() < size {
			t.Fatalf("the file shrank from %d to %d", size, st.Size())
		}
		size = st.Size()
		_, err = io.Copy(&got, r)
		check(t, err)
	}
	wg.Wait()
	for i := range 400 {
		if line := got.Next(7); string(line) != fmt.Sprintf("%06d\n", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if got.Len() > 0 {
		t.Fatalf("%d bytes too many", got.Len())
	}
}

func TestFullDiskLosesNothingAndRecovers(t *testing.T) {
	c := datatest.New(t, 3, datatest.StoreBytes(6*dc.MiB))
	a, b := mount(t, c, 1), mount(t, c, 2)
	keep := pattern(2 << 20)
	write(t, a+"/keep", keep)
	err := os.WriteFile(a+"/much", []byte(pattern(12<<20)), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want %v", err, unix.ENOSPC)
	}
	wantContent(t, b+"/keep", keep)
	write(t, a+"/small", "still fits an inode")
	wantContent(t, b+"/small", "still fits an inode")
	check(t, os.Remove(a+"/much"))
	check(t, os.Remove(a+"/keep"))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = os.WriteFile(a+"/again", []byte(keep), 0o644); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no room 20 s after everything was deleted: %v", err)
		}
	}
	wantContent(t, b+"/again", keep)
}

func TestANodeThatDiesIsGoneRound(t *testing.T) {
	c := datatest.New(t, 3)
	a, b := mount(t, c, 1), mount(t, c, 2)
	before, during := pattern(9<<20), pattern(5<<20+123)
	write(t, a+"/before", before)
	c.Cut(3, true)
	start := time.Now()
	write(t, a+"/during", during)
	if took := time.Since(start); took > 5*time.Second {
		t.Fatalf("writing took %v with a node gone", took)
	}
	wantContent(t, b+"/before", before)
	wantContent(t, b+"/during", during)
}

func TestALostBlockIsAnErrorNotAnEnd(t *testing.T) {
	c := datatest.New(t, 3)
	a := mount(t, c, 1)
	write(t, a+"/f", pattern(100_000))
	for _, n := range c.Nodes() {
		check(t, c.Store(n).Delete(c.Store(n).Blocks()))
	}
	if got, err := os.ReadFile(a + "/f"); !errors.Is(err, unix.EIO) {
		t.Fatalf("%d bytes, %v; want %v", len(got), err, unix.EIO)
	}
}

func TestGroupsOfTheCallerCount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become other users")
	}
	c := datatest.New(t, 1)
	a := mount(t, c, 1)
	check(t, os.Mkdir(a+"/team", 0o770))
	check(t, os.Chown(a+"/team", 0, 4242))
	check(t, os.Chmod(a+"/team", os.ModeSetgid|0o770))
	if err := asUser(1001, []int{4242}, func() error { return os.WriteFile(a+"/team/f", []byte("x"), 0o644) }); err != nil {
		t.Fatalf("a member of the directory's group: %v", err)
	}
	st, err := os.Stat(a + "/team/f")
	check(t, err)
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 1001 || sys.Gid != 4242 {
		t.Errorf("made by %d:%d", sys.Uid, sys.Gid)
	}
	if err := asUser(1002, nil, func() error { _, err := os.ReadFile(a + "/team/f"); return err }); !errors.Is(err, unix.EACCES) {
		t.Errorf("a stranger: %v", err)
	}
}
