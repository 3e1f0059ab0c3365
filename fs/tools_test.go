package fs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestToolsWorkOnSyntheticFiles(t *testing.T) {
	room := newMemory("t")
	dir, _ := mount(t, room)
	for _, c := range []struct{ name, script, want string }{
		{"list", `ls`, "t"},
		{"hidden", `cat .dc/stat; cat .dc/stat.json; ls -A`, "nodes 3\n{\"nodes\":3}\nt"},
		{"whoami", `grep ^node .dc/whoami`, "node n7"},
		{"write and read", `echo 42 > t/a; cat t/a`, "42"},
		{"wc", `printf '%s\n' one two three > t/w; wc t/w; wc -c < t/w`, "3  3 14 t/w\n14"},
		{"cp out and in", `seq 1000 > /tmp/$$.seq; cp /tmp/$$.seq t/seq; cmp t/seq /tmp/$$.seq && cp t/seq t/seq2 && cmp t/seq t/seq2; rm /tmp/$$.seq; sha256sum < t/seq2 | cut -c1-8`, "67d4ff71"},
		{"grep", `grep -n 77$ t/seq | head -2; grep -c 9 t/seq; grep -rl 999 t | sort`, "77:77\n177:177\n271\nt/seq\nt/seq2"},
		{"head and tail", `head -n 2 t/seq; tail -n 1 t/seq; tail -c 5 t/seq; head -c 3 t/seq`, "1\n2\n1000\n1000\n1\n2"},
		{"less", `less -F t/w | cat`, "one\ntwo\nthree"},
		{"append", `echo one > t/log; echo two >> t/log; cat t/log`, "one\ntwo"},
		{"python", `python3 -c 'import json; open("t/p","w").write(json.dumps({"a":[1]})); print(json.load(open("t/p"))["a"][0], __import__("os").stat("t/p").st_size)'`, "1 10"},
		{"jq", `jq -c .a t/p`, "[1]"},
		{"sort, awk, sed", `sort -rn t/seq | sed -n 1p; awk '{s+=$1} END {print s}' t/seq`, "1000\n500500"},
		{"dd", `dd if=t/seq bs=100 count=1 2>/dev/null | wc -c`, "100"},
		{"exclusive create", `set -C; echo x > t/once; (echo y > t/once) 2>/dev/null || echo refused; cat t/once`, "refused\nx"},
		{"rename and remove", `mv t/once t/twice; cat t/twice; rm t/twice; ls t/twice 2>&1 | grep -c 'No such file'`, "x\n1"},
		{"directories", `mkdir t/d; echo 1 > t/d/x; rmdir t/d 2>&1 | grep -o 'Directory not empty'; rm -r t/d; ls -d t/d 2>/dev/null || echo gone`, "Directory not empty\ngone"},
		{"stat", `stat -c '%s %F %a' t/a; test -f t/a && test -d t && ! test -e t/none && echo yes`, "3 regular file 644\nyes"},
		{"xattr", `setfattr -n user.dc.ttl -v 1h t/a; getfattr --only-values -n user.dc.ttl t/a; echo; getfattr -n user.dc.none t/a 2>&1 | grep -o 'No such attribute'`, "1h\nNo such attribute"},
		{"touch and chmod", `touch -d 2001-02-03 t/a; date -u -r t/a +%F; chmod 600 t/a; stat -c %a t/a`, "2001-02-03\n600"},
		{"find and du and tar", `find t -name 'se*' | sort; tar cf - -C t seq w | tar tf - | sort`, "t/seq\nt/seq2\nseq\nw"},
		{"shell read loop", `while read -r l; do echo "[$l]"; done < t/w`, "[one]\n[two]\n[three]"},
		{"read-write descriptor", `exec 3<>t/rw; echo hello >&3; exec 3>&-; cat t/rw`, "hello"},
		{"names", `echo 1 > "t/with space"; echo 2 > 't/ünï'; cat "t/with space" t/ünï; touch t/$(printf 'x%.0s' {1..256}) 2>&1 | grep -o 'File name too long'`, "1\n2\nFile name too long"},
		{"rename out of the room", `cd t; mv w ../ 2>&1 | grep -c . `, "1"},
		{"no links", `ln -s a t/l 2>&1 | grep -o 'Operation not permitted'; ln t/a t/h 2>&1 | grep -o 'Operation not permitted'`, "Operation not permitted\nOperation not permitted"},
		{"big value in one write", `head -c 100000 /dev/zero | tr '\0' x > t/big; stat -c %s t/big`, "100000"},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, dir, c.script, c.want) })
	}
}

// The order of calls that shells make was measured; that a value is committed once, in write(2), rests on it.
func TestShellRedirectionCommitsOnceInWrite(t *testing.T) {
	room := newMemory("t")
	f := &memoryFile{key: "t/f", mode: 0o666}
	room.files["f"] = f
	dir, _ := mount(t, room)
	expect(t, dir, `bash -c 'echo 42 > t/f'; ls t >/dev/null`, "")
	got := strings.TrimSuffix(f.took(), " release")
	if want := "open truncate flush write flush"; got != want {
		t.Errorf("got calls %q, want %q", got, want)
	}
	if f.commits != 1 {
		t.Errorf("got %d commits, want 1", f.commits)
	}
	out, err := shell(t, dir, `echo "bad thing" > t/f`)
	if err == nil || !strings.Contains(out, "Invalid argument") {
		t.Errorf("got %q, %v from a refused write, want Invalid argument and a failure", out, err)
	}
	expect(t, dir, `head -1 .dc/errors | grep -o 'memory.put t/f: the value is bad: it says so itself'; wc -l < .dc/errors`, "memory.put t/f: the value is bad: it says so itself\n1")
	expect(t, dir, `echo forget-errors > .dc/ctl; wc -c < .dc/errors`, "0")
	out, err = shell(t, dir, `echo nonsense > .dc/ctl`)
	if err == nil || !strings.Contains(out, "Invalid argument") {
		t.Errorf("got %q, %v from an unknown command, want Invalid argument", out, err)
	}
	expect(t, dir, `grep -o 'there is no command "nonsense" here; there are: forget-errors' .dc/errors`, `there is no command "nonsense" here; there are: forget-errors`)
}

func TestErrorsAreShownToTheirOwnerAndRootOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root to act for two users")
	}
	room := newMemory("t")
	room.files["f"] = &memoryFile{key: "t/f", mode: 0o666}
	dir, _ := mount(t, room)
	for p := dir; p != "/"; p = filepath.Dir(p) { // the test's directory is private
		if st, err := os.Stat(p); err == nil && p != dir {
			_ = os.Chmod(p, st.Mode().Perm()|0o055)
		}
	}
	_, _ = shell(t, dir, `setpriv --reuid 1234 --regid 1234 --clear-groups bash -c 'echo bad > t/f' 2>/dev/null`)
	_, _ = shell(t, dir, `setpriv --reuid 1235 --regid 1235 --clear-groups bash -c 'echo bad > t/f' 2>/dev/null`)
	expect(t, dir, `setpriv --reuid 1234 --regid 1234 --clear-groups wc -l .dc/errors`, "1 .dc/errors")
	expect(t, dir, `wc -l < .dc/errors; setpriv --reuid 1234 --regid 1234 --clear-groups grep -c ^uid.1234 .dc/whoami`, "2\n1")
}

func TestLongDirectoriesListByPages(t *testing.T) {
	const n = 5000
	room := newMemory("t")
	for i := range n {
		name := fmt.Sprintf("row%06d", i)
		room.files[name] = &memoryFile{key: "t/" + name, mode: 0o644}
	}
	dir, _ := mount(t, room)
	expect(t, dir, `ls -U t | wc -l; ls t | tail -1; ls -f t | sort | uniq -d | wc -l`, "5000\nrow004999\n0")
	expect(t, dir, `find t -name 'row00499*' | wc -l`, "10")
	expect(t, dir, `python3 - <<'E'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
for f in (libc.telldir, libc.readdir, libc.rewinddir, libc.closedir): f.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.readdir.restype = ctypes.c_void_p
def name(p): return ctypes.string_at(p + 19).decode() if p else None
d = libc.opendir(b"t")
seen = []
while True:
    at = libc.telldir(d)
    p = libc.readdir(d)
    if not p: break
    seen.append((at, name(p)))
assert len(seen) == 5002, len(seen)
for i in (4999, 17, 1025, 3000, 2, 0):
    libc.seekdir(d, seen[i][0])
    assert name(libc.readdir(d)) == seen[i][1], i
libc.rewinddir(d)
assert name(libc.readdir(d)) == "."
libc.closedir(d)
print("ok")
E`, "ok")
	expect(t, dir, `rm -r t/row*; ls t | wc -l`, "0")
}
