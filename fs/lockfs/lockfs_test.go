package lockfs_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/fs"
	"missingos/fs/lockfs"
	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/lock"
	"missingos/srv/replica"
	"missingos/srv/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 2

// A wire is how a node reaches the service; it can be cut.
type wire struct {
	*rpc.Local
	cut atomic.Bool
}

func (w *wire) Conn(dc.NodeID) (grpc.ClientConnInterface, error) {
	if w.cut.Load() {
		return nil, dc.Errorf(dc.Unavailable, "", "", "the wire is cut")
	}
	return w.Local, nil
}
func (w *wire) Group(string) (dc.GroupID, error) { return group, nil }
func (w *wire) Replicas(dc.GroupID) []dc.NodeID  { return []dc.NodeID{1} }

// A member is one node: its mount and its wire.
type member struct {
	dir   string
	mount *fs.Mounted
	wire  *wire
	lock  *client.Lock
	skew  atomic.Int64 // added to the clock that the session trusts
}

// members mounts n nodes' rooms over one store.
func members(t *testing.T, n int) []*member {
	t.Helper()
	svc := lock.New(lock.Config{})
	kind := svc.Kind()
	local := rpc.NewLocal()
	kind.Register(local)
	rep := replica.NewMemory(group, kind)
	t.Cleanup(rep.Close)
	start := time.Now()
	var out []*member
	for i := range n {
		m := &member{wire: &wire{Local: local}}
		m.lock = client.NewLockAt(client.New(client.Config{Node: dc.NodeID(i + 1), Nodes: m.wire, Directory: m.wire}), func() time.Duration {
			return time.Since(start) + time.Duration(m.skew.Load())
		})
		var err error
		m.mount, err = fs.Mount(fs.Config{
			Mountpoint: filepath.Join(t.TempDir(), "dc"), Node: dc.NodeID(i + 1), Rooms: map[string]synth.Dir{"lock": lockfs.New(m.lock)},
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Skipf("cannot mount here: %v", err)
		}
		m.dir = m.mount.Path()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := m.mount.Unmount(ctx); err != nil {
				t.Errorf("unmount: %v", err)
			}
			_ = m.lock.Close(ctx) // the wire may be cut
		})
		out = append(out, m)
	}
	return out
}

// shell runs a script in the room of m and gives what it printed.
func (m *member) shell(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "cd "+m.dir+"/lock\n"+script)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *member) expect(t *testing.T, script, want string) {
	t.Helper()
	if got, err := m.shell(t, script); err != nil || got != strings.TrimSpace(want) {
		t.Errorf("%s\ngot  %q, %v\nwant %q\n%s", script, got, err, want, m.errors(t))
	}
}

func (m *member) errors(t *testing.T) string {
	out, _ := m.shell(t, "head -3 ../.dc/errors")
	return out
}

// start runs a script and gives the way to end it.
func (m *member) start(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", "cd "+m.dir+"/lock\n"+script)
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// until polls a script until it prints want.
func (m *member) until(t *testing.T, script, want string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got, _ := m.shell(t, script)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s\nstill %q, want %q\n%s", script, got, want, m.errors(t))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestFilesInTheShell(t *testing.T) {
	m := members(t, 2)
	for _, c := range []struct{ name, script, want string }{
		{"empty", `ls -A`, ""},
		{"write and read", `echo v1 > config; cat config; echo v2 > config; cat config; stat -c '%s %F' config`, "v1\nv2\n3 regular file"},
		{"append", `echo one > log; echo two >> log; cat log`, "one\ntwo"},
		{"exclusive", `set -C; echo x > once; (echo y > once) 2>/dev/null || echo refused; cat once`, "refused\nx"},
		{"overwrite a part", `printf abcdef > part; printf X | dd of=part bs=1 seek=2 conv=notrunc 2>/dev/null; cat part`, "abXdef"},
		{"truncate commits nothing", `echo keep > kept; : > kept; cat kept; truncate -s 2 kept; cat kept`, "keep\nke"},
		{"directories", `mkdir -p a/b; echo x > a/b/f; ls a a/b; rmdir a 2>&1 | grep -o 'Directory not empty'; find a | sort`, "a:\nb\n\na/b:\nf\nDirectory not empty\na\na/b\na/b/f"},
		{"rename", `mv config a/c; cat a/c; ls config 2>&1 | grep -o 'No such file.*'; mv a z; cat z/b/f z/c`, "v2\nNo such file or directory\nx\nv2"},
		{"remove", `rm -r z; ls`, "kept\nlog\nonce\npart"},
		{"version", `a=$(getfattr -n user.dc.version --only-values log); echo three >> log; b=$(getfattr -n user.dc.version --only-values log); test $b -gt $a && echo grows`, "grows"},
		{"no fence when free", `getfattr -n user.dc.fence log 2>&1 | grep -o 'No such attribute'`, "No such attribute"},
		{"fence under a lock", `a=$(flock log getfattr -n user.dc.fence --only-values log); b=$(flock log getfattr -n user.dc.fence --only-values log); test $b -gt $a && echo grows`, "grows"},
		{"too big", `head -c 65536 /dev/zero > big && head -c 65537 /dev/zero 2>/dev/null > big2; stat -c %s big; grep -o 'MaxLockBytes' ../.dc/errors | head -1`, "65536\nMaxLockBytes"},
		{"cp, chmod, touch", `cp log copy; chmod 600 copy; stat -c %a copy; cmp log copy && touch -d 2001-02-03 copy; date -u -r copy +%F`, "600\n2001-02-03"},
		{"removed while open", `echo x > gone; exec 3<gone 4>>gone; rm gone; cat <&3 2>&1 | grep -o 'Stale file handle'; echo y 2>&1 >&4 | grep -o 'Stale file handle'; ls gone 2>/dev/null`, "Stale file handle\nStale file handle"},
		{"reserved name", `ls -a | grep -c '^\.dc$'; cat .dc/ctl; mkdir .dc 2>&1 | grep -o 'File exists'`, "0\nlock-delay 1s\nhistory-age unlimited\nhistory-bytes 268435456\nhistory-revisions 100000\nFile exists"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, err := m[0].shell(t, c.script); out != strings.TrimSpace(c.want) && !(err != nil && strings.HasSuffix(out, c.want)) {
				t.Errorf("%s\ngot  %q, %v\nwant %q\n%s", c.script, out, err, c.want, m[0].errors(t))
			}
		})
	}
	m[1].expect(t, `cat log`, "one\ntwo\nthree")
}

func TestControlFiles(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `grep ^revision .dc/stat; echo x > f; grep ^revision .dc/stat; grep -o '"files":1' .dc/stat.json`, "revision 0\nrevision 2\n\"files\":1")
	m.expect(t, `exec 3<>.dc/txn; echo '{"if":[{"path":"f","version":2}],"do":[{"put":"f","value":"y"},{"mkdir":"d"},{"put":"d/g","value":"z"},{"get":"d/g"}]}' >&3; cat <&3`,
		`{"succeeded":true,"revision":3,"results":[{"path":"d/g","version":3,"created":3,"value":"z"}]}`)
	m.expect(t, `exec 3<>.dc/txn; echo '{"if":[{"path":"f","version":2}],"do":[],"else":[{"get":"f"},{"get":"none"}]}' >&3; cat <&3`,
		`{"succeeded":false,"revision":3,"results":[{"path":"f","version":3,"created":1,"value":"y"},{"path":"none","absent":true}]}`)
	if out, err := m.shell(t, `exec 3<>.dc/txn; echo '{"do":[{"jump":"f"}]}' >&3; cat <&3`); err == nil || !strings.Contains(out, "Invalid argument") {
		t.Errorf("a bad transaction: %q, %v", out, err)
	}
	m.expect(t, `cat .dc/txn | grep -c '^#'`, "7")
	m.expect(t, `timeout 1 bash -c 'exec 3<>.dc/watch; echo "from=1 path=d" >&3; cat <&3' | jq -c '[.revision,.op,.path]'`, `[3,"mkdir","d"]`+"\n"+`[3,"put","d/g"]`)
	m.expect(t, `timeout 1 bash -c 'exec 3<>.dc/watch; echo "from=2 path=f format=text" >&3; cat <&3'; true`, "2 put /f version=2 value=\"x\\n\"\n3 put /f version=3 value=\"y\"")
	m.expect(t, `echo 'compact 2' > .dc/ctl; grep ^compacted .dc/stat; exec 3<>.dc/watch; echo from=2 >&3; cat <&3 2>&1 | grep -o 'Stale file handle'; grep -o 'the oldest that is kept is 3' ../.dc/errors | head -1`,
		"compacted 2\nStale file handle\nthe oldest that is kept is 3")
	m.expect(t, `echo 'lock-delay 0s' > .dc/ctl; grep lock-delay .dc/ctl; echo 'lock-delay 2m' > .dc/ctl 2>/dev/null || echo refused; cat d/.dc/ctl`, "lock-delay 0s\nrefused\nephemeral off")
	m.expect(t, `exec 9<f; flock -s 9; cut -f1-3 .dc/locks; cut -f1,3 .dc/sessions`, "f\theld\tshared\nn1\tlive")
	m.expect(t, `exec 9<f; flock 9; grep -E '^(state|users|reason)' .dc/session; grep -o '"state":"safe"' .dc/session.json`, "state safe\nusers 1\n\"state\":\"safe\"")
}

func TestThePastCanBeRead(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `mkdir d; echo one > d/f; r=$(getfattr -n user.dc.version --only-values d/f); echo two > d/f; echo 3 > d/g; rm d/f
		cat .dc/at/$r/d/f d/.dc/at/$r/f; ls .dc/at/$r/d; stat -c '%s %a' .dc/at/$r/d/f; getfattr -n user.dc.version --only-values .dc/at/$r/d/f | grep -cx $r; ls d; ls .dc/at | wc -l`,
		"one\none\nf\n4 444\n1\ng\n0")
	m.expect(t, `r=$(awk '$1=="revision"{print $2}' .dc/stat); ls .dc/at/$((r-1))/d; cat .dc/at/$((r-1))/d/f; ls .dc/at/$((r+1)) 2>&1 | grep -o 'Invalid argument'; ls .dc/at/x 2>&1 | grep -o 'No such file'
		(echo no > .dc/at/$r/d/g) 2>/dev/null || echo refused; echo "compact $((r-1))" > .dc/ctl; ls .dc/at/$((r-1))/d | wc -l; ls .dc/at/$((r-2)) 2>&1 | grep -o 'Stale file handle'`,
		"f\ng\ntwo\nInvalid argument\nNo such file\nrefused\n2\nStale file handle")
}

func TestStaleReads(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `mkdir d; echo one > d/f; cat .dc/stale/d/f d/.dc/stale/f; ls .dc/stale; (echo x > .dc/stale/d/f) 2>/dev/null || echo refused; cat .dc/stale/none 2>&1 | grep -o 'No such file'`,
		"one\none\nd\nrefused\nNo such file")
}

func TestRangesInTransactions(t *testing.T) {
	m := members(t, 1)[0]
	txn := func(s string) string { return `exec 3<>.dc/txn; echo '` + s + `' >&3; cat <&3 | jq -c .results` }
	m.expect(t, `mkdir d; for i in 1 2 3; do echo $i > d/f$i; done; rm d/f2; `+txn(`{"do":[{"put":"d/f0","value":"new"},{"delete":"d/f3"},{"list":"d"},{"get":"d/f1"},{"list":"none"}]}`)+` | jq -c '[.[]|[.path,(.files//[]|map([.path,.value])),.absent]]'`,
		`[["d",[["d/f0","new"],["d/f1","1\n"]],null],["d/f1",[],null],["none",[],true]]`)
	m.expect(t, txn(`{"do":[{"list":"d","limit":1},{"list":"d","after":"f0"}]}`)+` | jq -c '[.[]|[.files[].path]]'`, `[["d/f0"],["d/f1"]]`)
	m.expect(t, `c=$(exec 3<>.dc/txn; echo '{"do":[{"get":"d/f1"}]}' >&3; jq .results[0].created <&3); echo again > d/f1
		for n in $c $((c+1)); do exec 3<>.dc/txn; echo '{"if":[{"path":"d/f1","created":'$n'}],"do":[]}' >&3; jq .succeeded <&3; done`, "true\nfalse")
	if out, err := m.shell(t, txn(`{"do":[{"get":"d","limit":1}]}`)); err == nil && !strings.Contains(out, "Invalid argument") {
		t.Errorf("a get with a limit: %q, %v", out, err)
	}
}

func TestWatchTellsWhatWasBeforeAndWhatIsGone(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `echo a > f; echo b > f; rm f; timeout 1 bash -c 'exec 3<>.dc/watch; echo "from=2 path=f before" >&3; cat <&3' | jq -c '[.op,.before.value,.before.absent]'`,
		`["put","",null]`+"\n"+`["put","a\n",null]`+"\n"+`["delete","b\n",null]`)
	m.expect(t, `echo 'compact 3' > .dc/ctl; exec 3<>.dc/watch; echo from=2 >&3; cat <&3 2>/dev/null | jq -c '[.op,.revision]'`, `["compacted",3]`)
	m.expect(t, `echo 'history-revisions 5' > .dc/ctl; echo 'history-bytes 1M' > .dc/ctl; echo 'history-age 2h' > .dc/ctl; grep history .dc/ctl; echo 'history-age soon' > .dc/ctl 2>/dev/null || echo refused`,
		"history-age 2h0m0s\nhistory-bytes 1048576\nhistory-revisions 5\nrefused")
}

func TestEventsArriveAtOnce(t *testing.T) {
	m := members(t, 2)
	m[1].start(t, `cat .dc/events > `+m[0].dir+`.events`)
	t.Cleanup(func() { _ = os.Remove(m[0].dir + ".events") })
	time.Sleep(300 * time.Millisecond)
	m[0].expect(t, `echo hi > f`, "")
	m[0].until(t, `jq -r 'select(.value=="hi\n").op' `+m[0].dir+`.events`, "put")
}

func TestFlockAcrossNodes(t *testing.T) {
	m := members(t, 2)
	one, two := m[0], m[1]
	one.expect(t, `touch leader; mkfifo `+one.dir+`.fifo`, "")
	t.Cleanup(func() { _ = os.Remove(one.dir + ".fifo") })
	holder := one.start(t, `exec 9<leader; flock 9; read -r < `+one.dir+`.fifo`)
	two.until(t, `cut -f1-4,6 .dc/locks`, "leader\theld\texclusive\tn1\tflock")
	two.expect(t, `flock -n leader true; echo $?; flock -w 0.3 leader true; echo $?; flock -sn leader true; echo $?`, "1\n1\n1")
	done := make(chan string, 1)
	go func() { s, _ := two.shell(t, `flock leader echo got it`); done <- s }()
	one.until(t, `grep -c waiting .dc/locks`, "1")
	select {
	case s := <-done:
		t.Fatalf("%q while the lock was held", s)
	default:
	}
	if err := os.WriteFile(one.dir+".fifo", []byte("go\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err != nil {
		t.Fatal(err)
	}
	if s := <-done; s != "got it" {
		t.Fatalf("the waiter printed %q", s)
	}
}

func TestFlockPassesOnWhenTheHolderIsKilled(t *testing.T) {
	m := members(t, 2)
	one, two := m[0], m[1]
	one.expect(t, `touch leader`, "")
	holder := one.start(t, `exec 9<leader; flock 9; exec sleep 100`)
	two.until(t, `cut -f1,2,4 .dc/locks`, "leader\theld\tn1")
	fence, _ := two.shell(t, `getfattr -n user.dc.fence --only-values leader`)
	two.start(t, `flock leader sleep 100`)
	one.until(t, `grep -c waiting .dc/locks`, "1")
	killed := time.Now()
	_ = holder.Process.Kill()
	one.until(t, `cut -f1,2,4 .dc/locks`, "leader\theld\tn2")
	if took := time.Since(killed); took > 5*time.Second {
		t.Errorf("passed on after %v", took)
	}
	if next, _ := one.shell(t, `getfattr -n user.dc.fence --only-values leader`); len(next) < len(fence) || len(next) == len(fence) && next <= fence {
		t.Errorf("fence %s after %s", next, fence)
	}
}

func TestKilledWaiterLeavesTheQueue(t *testing.T) {
	m := members(t, 2)
	m[0].start(t, `flock l sleep 100`)
	m[0].until(t, `grep -c held .dc/locks`, "1")
	w := m[1].start(t, `exec flock l sleep 100`)
	m[0].until(t, `grep -c waiting .dc/locks`, "1")
	_ = w.Process.Kill()
	m[0].until(t, `grep -c waiting .dc/locks`, "0")
}

func TestSharedLocks(t *testing.T) {
	m := members(t, 2)
	m[0].start(t, `flock -s l sleep 100`)
	m[1].start(t, `flock -s l sleep 100`)
	m[0].until(t, `grep -c 'held.shared' .dc/locks`, "2")
	m[0].expect(t, `flock -n l true; echo $?; flock -sn l true; echo $?`, "1\n0")
}

// A descriptor that held a lock under a lost session is dead for ever; another node has the lock; new descriptors work.
func TestLostSessionMakesDescriptorsStale(t *testing.T) {
	m := members(t, 2)
	one, two := m[0], m[1]
	script := `exec 9<>leader; flock 9; echo mine >&9; touch held
while [ ! -e ` + one.dir + `.go ]; do sleep 0.05; done
for what in '(echo late >&9)' 'cat <&9' 'flock -u 9' 'flock -n 9'; do eval "$what" >/dev/null 2>` + one.dir + `.err || echo "$what $(grep -o 'Stale file handle' ` + one.dir + `.err | head -1)"; done
flock -n leader true; echo "new: $?"
exec 8<leader; cat <&8`
	t.Cleanup(func() { _ = os.Remove(one.dir + ".go"); _ = os.Remove(one.dir + ".err") })
	out := make(chan string)
	go func() { s, _ := one.shell(t, script); out <- s }()
	two.until(t, `ls held 2>/dev/null`, "held")
	// The node was stopped, in the middle of its session, for longer than that lasts.
	one.wire.cut.Store(true)
	one.skew.Store(int64(dc.SessionTTL))
	two.expect(t, `flock -w 20 leader bash -c 'echo theirs > leader; cat leader'`, "theirs")
	one.wire.cut.Store(false)
	if err := os.WriteFile(one.dir+".go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := "(echo late >&9) Stale file handle\ncat <&9 Stale file handle\nflock -u 9 Stale file handle\nflock -n 9 Stale file handle\nnew: 0\ntheirs"
	if got := <-out; got != want {
		t.Errorf("got\n%s\nwant\n%s\n%s", got, want, one.errors(t))
	}
}

func TestEphemeralDirectory(t *testing.T) {
	m := members(t, 2)
	one, two := m[0], m[1]
	one.expect(t, `mkdir members; echo ephemeral > members/.dc/ctl; cat members/.dc/ctl`, "ephemeral on")
	holder := one.start(t, `exec 9>members/one; echo addr >&9; exec sleep 100`)
	two.until(t, `cat members/one 2>/dev/null`, "addr")
	two.expect(t, `(exec 9>members/two; ls members); sleep 0.2; ls members`, "one\ntwo\none")
	_ = holder.Process.Kill()
	two.until(t, `ls members`, "")
}

func TestUnmountEndsTheSession(t *testing.T) {
	m := members(t, 2)
	m[0].start(t, `flock l sleep 100`)
	m[1].until(t, `grep -c held .dc/locks`, "1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m[0].mount.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m[0].lock.Close(ctx); err != nil {
		t.Fatal(err)
	}
	m[1].expect(t, fmt.Sprintf(`flock -w %d l echo got it`, int(2*dc.LockDelay/time.Second)+1), "got it")
}

// TestAFileRemovedWhileItIsMadeIsNotMadeAgain: the kernel asks for attributes at the end of open(2) and starts anew if it is told ESTALE, which
// would make the file twice.
func TestAFileRemovedWhileItIsMadeIsNotMadeAgain(t *testing.T) {
	m := members(t, 1)[0]
	f, err := os.OpenFile(filepath.Join(m.dir, "lock", "x"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.lock.Remove(t.Context(), "x", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("fstat of a removed file: %v, want what it was", err)
	}
	if _, err := f.WriteString("lost"); err == nil {
		t.Error("a write into a removed file says that it is committed")
	}
}
