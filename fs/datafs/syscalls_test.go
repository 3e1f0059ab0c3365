package datafs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A syscallTest is one promise of the system call interface. It runs in a directory of its own, as a sees it, with b the same on another node.
type syscallTest struct {
	name string
	root bool // needs to be root
	run  func(t *testing.T, a, b string)
}

// TestSyscalls is the gate for what /dc/data promises beyond pjdfstest and posixtest.
func TestSyscalls(t *testing.T) {
	a, b := two(t)
	for _, table := range [][]syscallTest{renameTests, allocateTests, tmpfileTests, specialTests, xattrTests, aclTests, cloneTests, lockTests} {
		for _, tt := range table {
			t.Run(tt.name, func(t *testing.T) {
				if tt.root && os.Geteuid() != 0 {
					t.Skip("only root can do this")
				}
				dir := strings.Map(func(r rune) rune {
					if r == ' ' || r == '\'' {
						return '-'
					}
					return r
				}, tt.name)
				check(t, os.Mkdir(filepath.Join(a, dir), 0o755))
				tt.run(t, filepath.Join(a, dir), filepath.Join(b, dir))
			})
		}
	}
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func open(t *testing.T, path string, flags int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func stat(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	check(t, unix.Lstat(path, &st))
	return st
}

func wantMode(t *testing.T, path string, want uint32) {
	t.Helper()
	if st := stat(t, path); st.Mode&0o7777 != want {
		t.Errorf("%s has mode %04o, want %04o", filepath.Base(path), st.Mode&0o7777, want)
	}
}

// as runs a shell command as another user, and tells whether it went well. The shell changes to dir itself: between fork and exec, a child of the process that serves
// the mount must not wait for it.
func as(t *testing.T, uid, gid int, groups, dir, command string) bool {
	t.Helper()
	cmd := exec.Command("setpriv", fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", gid), "--groups="+groups, "sh", "-c", "cd "+dir+" || exit; "+command)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		t.Logf("as user %d: %s: %v: %s", uid, command, err, out)
	}
	return err == nil
}

var renameTests = []syscallTest{
	{"rename without replacing", false, func(t *testing.T, a, b string) {
		write(t, a+"/x", "x")
		write(t, a+"/y", "y")
		wantErr(t, unix.Renameat2(unix.AT_FDCWD, a+"/x", unix.AT_FDCWD, a+"/y", unix.RENAME_NOREPLACE), unix.EEXIST)
		check(t, unix.Renameat2(unix.AT_FDCWD, a+"/x", unix.AT_FDCWD, a+"/z", unix.RENAME_NOREPLACE))
		wantContent(t, b+"/z", "x")
	}},
	{"rename in exchange", false, func(t *testing.T, a, b string) {
		write(t, a+"/x", "x")
		check(t, os.MkdirAll(a+"/d/in", 0o755))
		check(t, unix.Renameat2(unix.AT_FDCWD, a+"/x", unix.AT_FDCWD, a+"/d/in", unix.RENAME_EXCHANGE))
		wantContent(t, b+"/d/in", "x")
		if st := stat(t, b+"/x"); st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("x has mode %o", st.Mode)
		}
		if n, m := stat(t, b).Nlink, stat(t, b+"/d").Nlink; n != 4 || m != 2 {
			t.Errorf("links %d and %d, want 4 and 2", n, m)
		}
		wantErr(t, unix.Renameat2(unix.AT_FDCWD, a+"/x", unix.AT_FDCWD, a+"/none", unix.RENAME_EXCHANGE), unix.ENOENT)
		wantErr(t, unix.Renameat2(unix.AT_FDCWD, a+"/d", unix.AT_FDCWD, a+"/d/in", unix.RENAME_EXCHANGE), unix.EINVAL)
		wantErr(t, unix.Renameat2(unix.AT_FDCWD, a+"/x", unix.AT_FDCWD, a+"/d", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	}},
	{"rename of a file to another of its names does nothing", false, func(t *testing.T, a, b string) {
		write(t, a+"/x", "x")
		check(t, os.Link(a+"/x", a+"/y"))
		check(t, os.Rename(a+"/x", a+"/y"))
		wantContent(t, b+"/x", "x")
		wantContent(t, b+"/y", "x")
	}},
	{"rename over a temporary file that is still open shows its content", false, func(t *testing.T, a, b string) {
		write(t, a+"/f", "old")
		fd := open(t, a+"/f.tmp", unix.O_CREAT|unix.O_WRONLY, 0o644)
		_, err := unix.Write(fd, []byte("new content"))
		check(t, err)
		check(t, os.Rename(a+"/f.tmp", a+"/f"))
		wantContent(t, b+"/f", "new content")
	}},
}

var allocateTests = []syscallTest{
	{"fallocate", false, func(t *testing.T, a, b string) {
		fd := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR, 0o644)
		check(t, unix.Fallocate(fd, 0, 0, 100_000))
		if st := stat(t, b+"/f"); st.Size != 100_000 {
			t.Errorf("size %d", st.Size)
		}
		check(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 500_000))
		if st := stat(t, b+"/f"); st.Size != 100_000 {
			t.Errorf("size %d after keeping it", st.Size)
		}
		for _, mode := range []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_UNSHARE_RANGE} {
			wantErr(t, unix.Fallocate(fd, mode, 4096, 4096), unix.EOPNOTSUPP)
		}
		wantErr(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE, 0, 4096), unix.EOPNOTSUPP)
		wantErr(t, unix.Fallocate(fd, 0, 0, 1<<61), unix.EFBIG)
	}},
	{"punch hole and zero range", false, func(t *testing.T, a, b string) {
		p := []byte(pattern(1_000_000))
		fd := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR, 0o644)
		_, err := unix.Write(fd, p)
		check(t, err)
		before := stat(t, a+"/f").Blocks
		check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100_000, 300_000))
		clear(p[100_000:400_000])
		wantContent(t, b+"/f", string(p))
		if st := stat(t, b+"/f"); st.Blocks >= before-500 {
			t.Errorf("%d blocks, %d before", st.Blocks, before)
		}
		check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 900_000, 300_000))
		clear(p[900_000:])
		wantContent(t, b+"/f", string(p))
		check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 900_000, 300_000))
		wantContent(t, b+"/f", string(append(p, make([]byte, 200_000)...)))
	}},
	{"seek to holes and data", false, func(t *testing.T, a, b string) {
		fd := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR, 0o644)
		_, err := unix.Pwrite(fd, []byte(pattern(50_000)), 1<<20)
		check(t, err)
		check(t, unix.Ftruncate(fd, 4<<20))
		other := open(t, b+"/f", unix.O_RDONLY, 0)
		for _, tt := range []struct {
			from   int64
			whence int
			want   int64
		}{{0, unix.SEEK_HOLE, 0}, {0, unix.SEEK_DATA, 1 << 20}, {1<<20 + 7, unix.SEEK_DATA, 1<<20 + 7}, {1 << 20, unix.SEEK_HOLE, 1<<20 + 50_000}, {4<<20 - 1, unix.SEEK_HOLE, 4<<20 - 1}} {
			if got, err := unix.Seek(other, tt.from, tt.whence); err != nil || got != tt.want {
				t.Errorf("from %d, whence %d: %d, %v; want %d", tt.from, tt.whence, got, err, tt.want)
			}
		}
		_, err = unix.Seek(other, 2<<20, unix.SEEK_DATA)
		wantErr(t, err, unix.ENXIO)
		_, err = unix.Seek(other, 4<<20, unix.SEEK_HOLE)
		wantErr(t, err, unix.ENXIO)
	}},
	{"a file of 100 GB with little in it", false, func(t *testing.T, a, b string) {
		fd := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR, 0o644)
		check(t, unix.Ftruncate(fd, 100<<30))
		_, err := unix.Pwrite(fd, []byte("here"), 99<<30)
		check(t, err)
		check(t, unix.Fsync(fd))
		got := make([]byte, 8)
		_, err = unix.Pread(open(t, b+"/f", unix.O_RDONLY, 0), got, 99<<30-2)
		if err != nil || string(got) != "\x00\x00here\x00\x00" {
			t.Errorf("read %q, %v", got, err)
		}
		if st := stat(t, b+"/f"); st.Size != 100<<30 || st.Blocks > 1000 {
			t.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
		}
	}},
	{"direct and synchronous input and output", false, func(t *testing.T, a, b string) {
		fd := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0o644)
		m, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		check(t, err)
		defer func() { check(t, unix.Munmap(m)) }()
		copy(m, pattern(8192))
		_, err = unix.Pwrite(fd, m, 4096)
		check(t, err)
		wantContent(t, b+"/f", string(make([]byte, 4096))+pattern(8192)) // O_SYNC: written means everywhere
		write(t, b+"/f", strings.Repeat("z", 8192))
		if n, err := unix.Pread(fd, m, 0); err != nil || n != 8192 || m[0] != 'z' {
			t.Errorf("read %d bytes from %q, %v", n, m[0], err)
		}
	}},
	{"statfs", false, func(t *testing.T, a, _ string) {
		var st unix.Statfs_t
		check(t, unix.Statfs(a, &st))
		if st.Bsize <= 0 || st.Blocks == 0 || st.Bfree == 0 || st.Bfree > st.Blocks || st.Files < st.Ffree || st.Namelen != 255 {
			t.Errorf("%+v", st)
		}
	}},
}

var tmpfileTests = []syscallTest{
	{"a file without a name gets one", false, func(t *testing.T, a, b string) {
		fd := open(t, a, unix.O_TMPFILE|unix.O_RDWR, 0o640)
		_, err := unix.Write(fd, []byte("content"))
		check(t, err)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 || st.Size != 7 || st.Mode&0o777 != 0o640 {
			t.Fatalf("%+v, %v", st, err)
		}
		if names, err := os.ReadDir(b); err != nil || len(names) > 0 {
			t.Fatalf("the directory has %v, %v", names, err)
		}
		check(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, a+"/f", unix.AT_SYMLINK_FOLLOW))
		wantContent(t, b+"/f", "content")
		check(t, os.Link(a+"/f", a+"/g"))
		check(t, os.Remove(a+"/f"))
		if st := stat(t, b+"/g"); st.Nlink != 1 {
			t.Errorf("%d links", st.Nlink)
		}
	}},
	{"a file without a name that may have none", false, func(t *testing.T, a, _ string) {
		fd := open(t, a, unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR, 0o600)
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, a+"/f", unix.AT_SYMLINK_FOLLOW)
		wantErr(t, err, unix.ENOENT)
	}},
	{"an unlinked file is read on each node that has it open", false, func(t *testing.T, a, b string) {
		p := pattern(200_000)
		write(t, a+"/f", p)
		x, y := open(t, a+"/f", unix.O_RDWR, 0), open(t, b+"/f", unix.O_RDONLY, 0)
		check(t, os.Remove(a+"/f"))
		_, err := unix.Pwrite(x, []byte("changed"), 0)
		check(t, errors.Join(err, unix.Fsync(x)))
		got := make([]byte, len(p))
		if n, err := unix.Pread(y, got, 0); err != nil || n != len(p) || string(got) != "changed"+p[7:] {
			t.Errorf("read %d bytes %.20q, %v", n, got, err)
		}
		_, err = unix.Open(b+"/f", unix.O_RDONLY, 0)
		wantErr(t, err, unix.ENOENT)
	}},
}

var specialTests = []syscallTest{
	{"fifos and sockets", false, func(t *testing.T, a, b string) {
		check(t, unix.Mkfifo(a+"/fifo", 0o600))
		check(t, unix.Mknod(a+"/sock", unix.S_IFSOCK|0o600, 0))
		if stat(t, b+"/fifo").Mode != unix.S_IFIFO|0o600 || stat(t, b+"/sock").Mode != unix.S_IFSOCK|0o600 {
			t.Errorf("modes %o and %o", stat(t, b+"/fifo").Mode, stat(t, b+"/sock").Mode)
		}
		out, err := exec.Command("sh", "-c", "echo through >"+a+"/fifo & cat "+a+"/fifo").Output()
		if err != nil || string(out) != "through\n" {
			t.Errorf("%q, %v", out, err)
		}
	}},
	{"devices", true, func(t *testing.T, a, b string) {
		check(t, unix.Mknod(a+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		if st := stat(t, b+"/null"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("%+v", st)
		}
	}},
	{"set-id bits go with a write, a truncation and a change of owner", true, func(t *testing.T, a, b string) {
		for _, tt := range []struct{ how, command string }{
			{"write", "echo x >>f"}, {"truncate", "truncate -s 3 f"}, {"chgrp", "chgrp 1002 f"}, {"open descriptor", "exec 3<>f; echo x >&3; test $(stat -c %a f) = 777"},
		} {
			write(t, a+"/f", "content")
			check(t, os.Chown(a+"/f", 1001, 1001))
			check(t, unix.Chmod(a+"/f", 0o6777))
			if !as(t, 1001, 1001, "1002", a, tt.command) {
				t.Errorf("%s failed", tt.how)
			}
			wantMode(t, b+"/f", 0o777)
		}
	}},
	{"a set-gid directory gives its group, not its powers", true, func(t *testing.T, a, b string) {
		check(t, unix.Mkdir(a+"/d", 0o755))
		check(t, os.Chown(a+"/d", 1001, 1002))
		check(t, unix.Chmod(a+"/d", 0o2777))
		if !as(t, 1003, 1003, "1003", a+"/d", "mkdir sub; touch f; chmod 2755 f") {
			t.Error("not made")
		}
		if st := stat(t, b+"/d/f"); st.Gid != 1002 || st.Mode&unix.S_ISGID != 0 {
			t.Errorf("f has group %d, mode %o", st.Gid, st.Mode)
		}
		wantMode(t, b+"/d/sub", 0o2755)
	}},
	{"sticky bit", true, func(t *testing.T, a, _ string) {
		check(t, unix.Mkdir(a+"/d", 0o755))
		check(t, unix.Chmod(a+"/d", 0o1777))
		write(t, a+"/d/f", "")
		if as(t, 1001, 1001, "1001", a+"/d", "rm -f f") || as(t, 1001, 1001, "1001", a+"/d", "mv f g") {
			t.Error("another's file could be taken out of a sticky directory")
		}
		if !as(t, 1001, 1001, "1001", a+"/d", "touch g && mv g h && rm h") {
			t.Error("one's own could not")
		}
	}},
}

var xattrTests = []syscallTest{
	{"namespaces of attributes", true, func(t *testing.T, a, b string) {
		write(t, a+"/f", "")
		check(t, os.Symlink("f", a+"/link"))
		for _, tt := range []struct {
			file, name string
			want       error
		}{
			{"f", "user.x", nil},
			{"f", "trusted.x", nil},
			{"f", "security.x", nil},
			{"f", "system.x", unix.EOPNOTSUPP},
			{"f", "other.x", unix.EOPNOTSUPP},
			{"link", "user.x", unix.EPERM},
			{"link", "trusted.x", nil},
		} {
			wantErr(t, unix.Lsetxattr(a+"/"+tt.file, tt.name, []byte("v"), 0), tt.want)
		}
		list := make([]byte, 1000)
		n, err := unix.Listxattr(b+"/f", list)
		check(t, err)
		for _, name := range []string{"user.x", "trusted.x", "security.x"} {
			if !strings.Contains(string(list[:n]), name+"\x00") {
				t.Errorf("%s is not listed: %q", name, list[:n])
			}
		}
		check(t, unix.Chmod(a+"/f", 0o644))
		if as(t, 1001, 1001, "1001", a, "setfattr -n user.y -v 1 f") || as(t, 1001, 1001, "1001", a, "setfattr -n security.y -v 1 f") || as(t, 1001, 1001, "1001", a, "getfattr -n trusted.x f") {
			t.Error("another user may")
		}
		if !as(t, 1001, 1001, "1001", b, "getfattr -n user.x f") {
			t.Error("another user may not read")
		}
	}},
	{"create and replace of attributes", false, func(t *testing.T, a, b string) {
		write(t, a+"/f", "")
		wantErr(t, unix.Setxattr(a+"/f", "user.x", []byte("1"), unix.XATTR_REPLACE), unix.ENODATA)
		check(t, unix.Setxattr(a+"/f", "user.x", []byte("1"), unix.XATTR_CREATE))
		wantErr(t, unix.Setxattr(a+"/f", "user.x", []byte("2"), unix.XATTR_CREATE), unix.EEXIST)
		check(t, unix.Setxattr(a+"/f", "user.x", nil, unix.XATTR_REPLACE))
		if n, err := unix.Getxattr(b+"/f", "user.x", nil); n != 0 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		check(t, unix.Removexattr(a+"/f", "user.x"))
		_, err := unix.Getxattr(b+"/f", "user.x", nil)
		wantErr(t, err, unix.ENODATA)
		wantErr(t, unix.Removexattr(a+"/f", "user.x"), unix.ENODATA)
	}},
	{"capabilities go with a write", true, func(t *testing.T, a, b string) {
		write(t, a+"/f", "x")
		c := binary.LittleEndian.AppendUint32(nil, 0x02000000)
		c = append(c, make([]byte, 16)...)
		check(t, unix.Setxattr(a+"/f", "security.capability", c, 0))
		check(t, os.Chown(a+"/f", 1001, 1001))
		_, err := unix.Getxattr(b+"/f", "security.capability", make([]byte, 64))
		wantErr(t, err, unix.ENODATA)
	}},
}

var cloneTests = []syscallTest{
	{"a copy of a file shares its blocks", false, func(t *testing.T, a, b string) {
		p := pattern(9_000_000)
		write(t, a+"/f", p)
		var before, after unix.Statfs_t
		check(t, unix.Statfs(a, &before))
		from, to := open(t, a+"/f", unix.O_RDONLY, 0), open(t, a+"/g", unix.O_CREAT|unix.O_RDWR, 0o644)
		for left := len(p); left > 0; {
			n, err := unix.CopyFileRange(from, nil, to, nil, left, 0)
			if err != nil || n == 0 {
				t.Fatalf("%d bytes, %v, with %d left", n, err, left)
			}
			left -= n
		}
		wantContent(t, b+"/g", p)
		_, err := unix.Pwrite(to, []byte("other"), 5_000_000)
		check(t, errors.Join(err, unix.Fsync(to)))
		wantContent(t, b+"/f", p)
		check(t, os.Remove(a+"/f"))
		wantContent(t, b+"/g", p[:5_000_000]+"other"+p[5_000_005:])
		check(t, unix.Statfs(a, &after))
		_ = after
	}},
	{"ranges of files are copied", false, func(t *testing.T, a, b string) {
		p := pattern(1_000_000)
		fd := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR, 0o644)
		_, err := unix.Pwrite(fd, []byte(p), 0)
		check(t, err)
		check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 400_000, 100_000))
		_, err = unix.Pwrite(fd, []byte("small"), 1_000_000)
		check(t, err)
		want := []byte(p + "small")
		clear(want[400_000:500_000])
		other := []byte(strings.Repeat("o", 1_200_000))
		to := open(t, a+"/g", unix.O_CREAT|unix.O_RDWR, 0o644)
		_, err = unix.Pwrite(to, other, 0)
		check(t, err)
		for _, r := range []struct{ from, to, n int64 }{{3, 7, 10}, {100_001, 5, 700_000}, {999_990, 1_199_999, 1000}, {0, 1_100_000, 50_000}} {
			src, dst := r.from, r.to
			var done int64
			for done < r.n {
				n, err := unix.CopyFileRange(fd, &src, to, &dst, int(r.n-done), 0)
				check(t, err)
				if n == 0 {
					break
				}
				done += int64(n)
			}
			part := want[r.from:min(int64(len(want)), r.from+r.n)]
			if done != int64(len(part)) {
				t.Errorf("%d bytes copied of %d", done, len(part))
			}
			if grow := int(r.to) + len(part) - len(other); grow > 0 {
				other = append(other, make([]byte, grow)...)
			}
			copy(other[r.to:], part)
			check(t, unix.Fsync(to))
			got, err := os.ReadFile(b + "/g")
			if err != nil || !bytes.Equal(got, other) {
				t.Fatalf("after %v: %d bytes, %v; want %d", r, len(got), err, len(other))
			}
		}
		src, dst := int64(0), int64(10)
		_, err = unix.CopyFileRange(fd, &src, fd, &dst, 100, 0)
		wantErr(t, err, unix.EINVAL)
		dst = 2_000_000
		if n, err := unix.CopyFileRange(fd, &src, fd, &dst, 100_000, 0); err != nil || n != 100_000 {
			t.Errorf("within the file: %d, %v", n, err)
		}
		wantContent(t, b+"/f", string(want)+string(make([]byte, 2_000_000-len(want)))+p[:100_000])
	}},
	{"cp, on two nodes", false, func(t *testing.T, a, b string) {
		p := pattern(5_000_000)
		write(t, a+"/f", p)
		out, err := exec.Command("cp", a+"/f", a+"/g").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		wantContent(t, b+"/g", p)
	}},
}
