package datafs_test

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMatrix makes every change beside every state that an observer on another node may be in, and wants the observer's first call after the change to tell what it
// tells on a disk of this machine, where one kernel sees both.
func TestMatrix(t *testing.T) {
	a, b := two(t)
	plain := t.TempDir()
	for _, c := range changes {
		for _, o := range observers {
			name := c.name + " seen by " + o.name
			t.Run(name, func(t *testing.T) {
				if c.root && os.Geteuid() != 0 {
					t.Skip("only root can do this")
				}
				dir := strings.ReplaceAll(name, " ", "-")
				want := cell(t, c, o, filepath.Join(plain, dir), filepath.Join(plain, dir))
				got := cell(t, c, o, filepath.Join(a, dir), filepath.Join(b, dir))
				if got != want {
					t.Errorf("got:\n%swant:\n%s", got, want)
				}
			})
		}
	}
}

// cell is what o, who looked at b before, tells after c was made at a, which is the same directory.
func cell(t *testing.T, c change, o observer, a, b string) string {
	t.Helper()
	check(t, os.MkdirAll(a+"/sub/deep", 0o755))
	write(t, a+"/f", "before")
	write(t, a+"/big", pattern(100_000))
	write(t, a+"/sub/in", "inside")
	check(t, os.Mkdir(a+"/empty", 0o755))
	check(t, os.Symlink("f", a+"/link"))
	look := o.before(t, b)
	look() // so that what can be known is known
	c.make(t, a)
	return look()
}

type change struct {
	name string
	root bool
	make func(t *testing.T, dir string)
}

func edit(flags int, do func(f *os.File) error) func(*testing.T, string) {
	return func(t *testing.T, d string) {
		t.Helper()
		f, err := os.OpenFile(d+"/f", os.O_RDWR|flags, 0)
		check(t, err)
		t.Cleanup(func() { _ = f.Close() })
		check(t, do(f))
	}
}

var changes = []change{
	{"create", false, func(t *testing.T, d string) { write(t, d+"/new", "new") }},
	{"write and close", false, func(t *testing.T, d string) { write(t, d+"/f", "changed") }},
	{"write of the same size", false, func(t *testing.T, d string) { write(t, d+"/f", "BEFORE") }},
	{"write of much", false, func(t *testing.T, d string) { write(t, d+"/f", pattern(300_000)) }},
	{"write and fsync", false, edit(0, func(f *os.File) error {
		_, err := f.WriteAt([]byte("X"), 2)
		return errors.Join(err, f.Sync())
	})},
	{"synchronous write", false, edit(os.O_SYNC, func(f *os.File) error { _, err := f.WriteAt([]byte("Y"), 3); return err })},
	{"append", false, edit(os.O_APPEND, func(f *os.File) error { _, err := f.WriteString(" after"); return errors.Join(err, f.Close()) })},
	{"truncate", false, func(t *testing.T, d string) { check(t, os.Truncate(d+"/f", 3)) }},
	{"ftruncate", false, edit(0, func(f *os.File) error { return f.Truncate(2) })},
	{"growth", false, func(t *testing.T, d string) { check(t, os.Truncate(d+"/f", 5000)) }},
	{"punched hole", false, edit(0, func(f *os.File) error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1, 3)
	})},
	{"copy of a range", false, edit(0, func(f *os.File) error {
		from, err := os.Open(filepath.Dir(f.Name()) + "/big")
		if err != nil {
			return err
		}
		_, err = unix.CopyFileRange(int(from.Fd()), nil, int(f.Fd()), nil, 50_000, 0)
		return errors.Join(err, from.Close())
	})},
	{"rename over", false, func(t *testing.T, d string) {
		write(t, d+"/tmp", "replaced")
		check(t, os.Rename(d+"/tmp", d+"/f"))
	}},
	{"rename away", false, func(t *testing.T, d string) { check(t, os.Rename(d+"/f", d+"/sub/f")) }},
	{"rename of a directory", false, func(t *testing.T, d string) { check(t, os.Rename(d+"/sub", d+"/moved")) }},
	{"rename over a directory", false, func(t *testing.T, d string) { check(t, unix.Rename(d+"/sub", d+"/empty")) }},
	{"exchange", false, func(t *testing.T, d string) {
		check(t, unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/sub", unix.RENAME_EXCHANGE))
	}},
	{"unlink", false, func(t *testing.T, d string) { check(t, os.Remove(d+"/f")) }},
	{"unlink inside", false, func(t *testing.T, d string) { check(t, os.Remove(d+"/sub/in")) }},
	{"link", false, func(t *testing.T, d string) { check(t, os.Link(d+"/f", d+"/new")) }},
	{"link of a file without a name", false, func(t *testing.T, d string) {
		fd := open(t, d, unix.O_TMPFILE|unix.O_RDWR, 0o644)
		_, err := unix.Write(fd, []byte("anonymous"))
		check(t, err)
		check(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, d+"/new", unix.AT_SYMLINK_FOLLOW))
	}},
	{"chmod", false, func(t *testing.T, d string) { check(t, os.Chmod(d+"/f", 0o600)) }},
	{"chown", true, func(t *testing.T, d string) { check(t, os.Chown(d+"/f", 12, 34)) }},
	{"utimes", false, func(t *testing.T, d string) {
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", []unix.Timespec{{Sec: 5}, {Sec: 7, Nsec: 8}}, 0))
	}},
	{"setxattr", false, func(t *testing.T, d string) { check(t, unix.Setxattr(d+"/f", "user.k", []byte("v"), 0)) }},
	{"setfacl", false, func(t *testing.T, d string) { setfacl(t, "-m", "u:1001:rw", d+"/f") }},
	{"mkdir", false, func(t *testing.T, d string) { check(t, os.Mkdir(d+"/new", 0o755)) }},
	{"mkdir inside", false, func(t *testing.T, d string) { check(t, os.Mkdir(d+"/sub/new", 0o755)) }},
	{"rmdir", false, func(t *testing.T, d string) { check(t, os.Remove(d+"/empty")) }},
	{"removal of a tree", false, func(t *testing.T, d string) { check(t, os.RemoveAll(d+"/sub")) }},
	{"symlink swap", false, func(t *testing.T, d string) {
		check(t, os.Symlink("big", d+"/tmp"))
		check(t, os.Rename(d+"/tmp", d+"/link"))
	}},
	{"mkfifo", false, func(t *testing.T, d string) { check(t, unix.Mkfifo(d+"/new", 0o644)) }},
}

// An observer looks at a directory before a change; the function it gives looks once more, with that knowledge.
type observer struct {
	name   string
	before func(t *testing.T, dir string) (look func() string)
}

var names = []string{"big", "empty", "f", "link", "moved", "moved/in", "new", "sub", "sub/deep", "sub/f", "sub/in", "sub/new", "tmp"}

// perName looks at every name, known or not.
func perName(look func(path string) string) func(*testing.T, string) func() string {
	return func(_ *testing.T, dir string) func() string {
		return func() string {
			var out strings.Builder
			for _, n := range names {
				fmt.Fprintf(&out, "%s: %s\n", n, look(filepath.Join(dir, n)))
			}
			return out.String()
		}
	}
}

// onFile looks through a descriptor of the file that most changes are about.
func onFile(flags int, look func(fd int) string) func(*testing.T, string) func() string {
	return func(t *testing.T, dir string) func() string {
		fd := open(t, dir+"/f", flags, 0)
		return func() string { return look(fd) + "\n" }
	}
}

func statText(st *unix.Stat_t, err error) string {
	if err != nil {
		return err.Error()
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		st.Size = 0
	}
	s := fmt.Sprintf("mode %o, %d links, %d:%d, %d bytes", st.Mode, st.Nlink, st.Uid, st.Gid, st.Size)
	if st.Mtim.Sec < 1000 {
		s += fmt.Sprintf(", of %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return s
}

func content(fd int) string {
	b := make([]byte, 400_000)
	n := 0
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], int64(n))
		if err != nil {
			return err.Error()
		}
		if m == 0 {
			break
		}
		n += m
	}
	return fmt.Sprintf("%d bytes, %.200q", n, b[:n])
}

func entries(fd int) string {
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return err.Error()
	}
	var all []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.ENOENT {
			return "" // a directory that this kernel has seen removed; one that another has is empty
		}
		if err != nil {
			return err.Error()
		}
		if n == 0 {
			break
		}
		_, _, all = unix.ParseDirent(buf[:n], -1, all)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

var observers = []observer{
	{"lstat", perName(func(path string) string {
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		return statText(&st, err)
	})},
	{"stat", perName(func(path string) string {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		return statText(&st, err)
	})},
	{"a reader by name", perName(func(path string) string {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err.Error()
		}
		defer func() { _ = unix.Close(fd) }()
		return content(fd)
	})},
	{"a reader of attributes", perName(func(path string) string {
		v := make([]byte, 400)
		n, err := unix.Getxattr(path, "user.k", v)
		m, err2 := unix.Getxattr(path, "system.posix_acl_access", v[max(n, 0):])
		return fmt.Sprintf("%x, %v, %v", v[:max(n, 0)+max(m, 0)], err, err2)
	})},
	{"a reader of links", perName(func(path string) string {
		to, err := os.Readlink(path)
		return cmp.Or(to, fmt.Sprint(errors.Unwrap(err)))
	})},
	{"fstat", onFile(unix.O_RDONLY, func(fd int) string {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		return statText(&st, err)
	})},
	{"an open descriptor", onFile(unix.O_RDONLY, content)},
	{"a descriptor for writing", onFile(unix.O_RDWR, content)},
	{"a descriptor for appending", onFile(unix.O_RDWR|unix.O_APPEND, content)},
	{"a search for the end", onFile(unix.O_RDONLY, func(fd int) string {
		end, err := unix.Seek(fd, 0, io.SeekEnd)
		return fmt.Sprint(end, err)
	})},
	{"an open directory", func(t *testing.T, dir string) func() string {
		fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		return func() string { return entries(fd) + "\n" }
	}},
	{"a process inside", func(t *testing.T, dir string) func() string {
		fd := open(t, dir+"/sub", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		return func() string {
			out := entries(fd) + "\n"
			for _, n := range []string{".", "in", "deep", "new", "f", "../f", "../new"} {
				var st unix.Stat_t
				err := unix.Fstatat(fd, n, &st, 0)
				out += fmt.Sprintf("%s: %s\n", n, statText(&st, err))
			}
			return out
		}
	}},
	{"a process that has mapped it", mappedBefore},
}

// mappedBefore maps a file in a process of its own (see mapped), which looks at its length and then at its memory each time it is told to.
func mappedBefore(t *testing.T, dir string) func() string {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), watchPath+"="+dir+"/f")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() { check(t, errors.Join(in.Close(), cmd.Wait())) })
	lines := bufio.NewReader(out)
	return func() string {
		_, err := io.WriteString(in, "look\n")
		check(t, err)
		line, err := lines.ReadString('\n')
		check(t, err)
		return line
	}
}

const watchPath = "DATAFS_TEST_WATCH"

func watchFile(path string) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		fmt.Printf("%v, %q\n", err, m[:min(st.Size, 50)])
	}
}
