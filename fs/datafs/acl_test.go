package datafs_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func setfacl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("setfacl", args...).CombinedOutput(); err != nil {
		t.Fatalf("setfacl %v: %v: %s", args, err, out)
	}
}

// getfacl gives the entries of a list, one a word.
func getfacl(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("getfacl", "-cnp", "--no-effective", path).Output()
	if err != nil {
		t.Fatalf("getfacl %s: %v", path, err)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func wantACL(t *testing.T, path, want string) {
	t.Helper()
	if got := getfacl(t, path); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

var aclTests = []syscallTest{
	{"a list admits and refuses users and groups", true, func(t *testing.T, a, b string) {
		write(t, a+"/f", "secret\n")
		check(t, unix.Chmod(a+"/f", 0o640))
		setfacl(t, "-m", "u:1001:rw,u:1002:-,g:1003:r", a+"/f")
		wantACL(t, b+"/f", "user::rw- user:1001:rw- user:1002:--- group::r-- group:1003:r-- mask::rw- other::---")
		wantMode(t, b+"/f", 0o660)
		for _, tt := range []struct {
			uid, gid int
			groups   string
			command  string
			want     bool
		}{
			{1001, 1001, "1001", "cat f", true},
			{1001, 1001, "1001", "echo x >>f", true},
			{1002, 1002, "1003", "cat f", false},
			{1004, 1003, "1003", "cat f", true},
			{1004, 1004, "7,1003", "cat f", true},
			{1004, 1003, "1003", "echo x >>f", false},
			{1004, 1004, "1004", "cat f", false},
			{1004, 0, "1004", "cat f", true},
		} {
			if got := as(t, tt.uid, tt.gid, tt.groups, b, tt.command); got != tt.want {
				t.Errorf("user %d in %d,%s: %s: %v", tt.uid, tt.gid, tt.groups, tt.command, got)
			}
		}
		setfacl(t, "-x", "u:1001", a+"/f")
		if as(t, 1001, 1001, "1001", b, "cat f") {
			t.Error("read after the entry was removed on another node")
		}
	}},
	{"chmod changes the mask", true, func(t *testing.T, a, b string) {
		write(t, a+"/f", "x")
		setfacl(t, "-m", "u:1001:rwx", a+"/f")
		check(t, unix.Chmod(a+"/f", 0o604))
		wantACL(t, b+"/f", "user::rw- user:1001:rwx group::r-- mask::--- other::r--")
		if as(t, 1001, 1001, "1001", b, "cat f") {
			t.Error("the mask does not bind")
		}
		setfacl(t, "-b", a+"/f")
		if n, err := unix.Getxattr(b+"/f", "system.posix_acl_access", nil); err != unix.ENODATA {
			t.Errorf("%d, %v", n, err)
		}
	}},
	{"a directory's default list is inherited", true, func(t *testing.T, a, b string) {
		check(t, os.Mkdir(a+"/d", 0o755))
		setfacl(t, "-d", "-m", "u:1001:rwx,g::rx,o::-", a+"/d")
		old := unix.Umask(0o077)
		defer unix.Umask(old)
		fd := open(t, a+"/d/f", unix.O_CREAT|unix.O_RDWR, 0o664)
		_ = fd
		check(t, os.Mkdir(a+"/d/sub", 0o777))
		check(t, unix.Mkfifo(a+"/d/fifo", 0o666))
		wantACL(t, b+"/d/f", "user::rw- user:1001:rwx group::r-x mask::rw- other::---") // the umask does not count
		wantMode(t, b+"/d/f", 0o660)
		wantMode(t, b+"/d/fifo", 0o660)
		list := "user::rwx user:1001:rwx group::r-x mask::rwx other::---"
		wantACL(t, b+"/d/sub", list+" "+"default:"+strings.ReplaceAll(list, " ", " default:"))
		check(t, os.Mkdir(a+"/plain", 0o777))
		wantMode(t, b+"/plain", 0o700) // here it does
		if !as(t, 1001, 1001, "1001", b+"/d/sub", "touch mine && mkdir more") {
			t.Error("the inherited entry does not admit")
		}
	}},
	{"only the owner changes a list", true, func(t *testing.T, a, b string) {
		write(t, a+"/f", "x")
		check(t, os.Chown(a+"/f", 1001, 1001))
		if as(t, 1002, 1002, "1002", b, "setfacl -m u:1002:rw f") || !as(t, 1001, 1001, "1001", b, "setfacl -m u:1002:r f") {
			t.Error("wrong user")
		}
		if as(t, 1001, 1001, "1001", b, "setfacl -d -m u:1002:r f") {
			t.Error("a file got a default list")
		}
		wantErr(t, unix.Setxattr(a+"/f", "system.posix_acl_access", []byte("nonsense"), 0), unix.EOPNOTSUPP) // the kernel says so
	}},
	{"cp and mv keep lists", true, func(t *testing.T, a, b string) {
		write(t, a+"/f", "x")
		setfacl(t, "-m", "u:1001:rw", a+"/f")
		if out, err := exec.Command("cp", "-a", a+"/f", a+"/g").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		check(t, os.Rename(a+"/g", a+"/h"))
		wantACL(t, b+"/h", "user::rw- user:1001:rw- group::r-- mask::rw- other::r--")
	}},
}
