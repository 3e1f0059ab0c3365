package topicfs_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/fs"
	"missingos/fs/synth"
	"missingos/fs/topicfs"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/srv/topic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 6

// names is the meta group's part: descriptors, in memory.
type names struct {
	mu   sync.Mutex
	all  map[string]client.Descriptor
	last uint64
}

func (n *names) CreateDescriptor(_ context.Context, kind, name string, mode uint32) (client.Descriptor, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.all[name]; ok {
		return client.Descriptor{}, dc.Errorf(dc.Exists, "meta", name, "")
	}
	n.last++
	d := client.Descriptor{Kind: kind, Name: name, ID: n.last, Group: group, State: "ready", Mode: mode, Created: time.Now()}
	n.all[name] = d
	return d, nil
}

func (n *names) Descriptor(_ context.Context, _, name string) (client.Descriptor, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d, ok := n.all[name]; ok {
		return d, nil
	}
	return client.Descriptor{}, dc.Errorf(dc.NotFound, "meta", name, "there is no such topic")
}

func (n *names) Forget(string, string) {}

func (n *names) ListDescriptors(_ context.Context, _, after string, limit int) (out []client.Descriptor, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, d := range n.all {
		if name > after {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b client.Descriptor) int { return strings.Compare(a.Name, b.Name) })
	return out[:min(limit, len(out))], nil
}

func (n *names) MarkDropping(_ context.Context, _ string, id uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, d := range n.all {
		if d.ID == id {
			delete(n.all, name)
		}
	}
	return nil
}

func (n *names) RemoveDescriptor(ctx context.Context, kind string, id uint64) error {
	return n.MarkDropping(ctx, kind, id)
}

// wire is how a node reaches the one replica.
type wire struct{ *rpc.Local }

func (w wire) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return w.Local, nil }
func (wire) Group(string) (dc.GroupID, error)                   { return group, nil }
func (wire) Replicas(dc.GroupID) []dc.NodeID                    { return []dc.NodeID{1} }

// A member is one node's mount.
type member struct{ dir string }

// members mounts the room on n nodes over one topic group.
func members(t *testing.T, n int) []*member {
	t.Helper()
	meta := &names{all: map[string]client.Descriptor{}}
	kind := topic.New(topic.Config{Descriptors: meta}).Kind()
	local := rpc.NewLocal()
	kind.Register(local)
	rep := replica.NewMemory(group, kind)
	t.Cleanup(rep.Close)
	var out []*member
	for i := range n {
		c := client.New(client.Config{Node: dc.NodeID(i + 1), Nodes: wire{local}, Directory: wire{local}})
		mounted, err := fs.Mount(fs.Config{
			Mountpoint: filepath.Join(t.TempDir(), "dc"), Node: dc.NodeID(i + 1),
			Rooms: map[string]synth.Dir{"topics": topicfs.New(client.NewTopics(c, meta))},
			Log:   slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Skipf("cannot mount here: %v", err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := mounted.Unmount(ctx); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
		out = append(out, &member{dir: filepath.Join(mounted.Path(), "topics")})
	}
	return out
}

// shell runs a script in the room and gives what it printed.
func (m *member) shell(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// Not cmd.Dir: the child would change to it before exec, while the runtime waits for it and cannot serve the mount.
	cmd := exec.CommandContext(ctx, "bash", "-c", "cd "+m.dir+"\n"+script)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *member) expect(t *testing.T, script, want string) {
	t.Helper()
	got, err := m.shell(t, script)
	if err != nil || got != strings.TrimSpace(want) {
		why, _ := m.shell(t, "head -3 ../.dc/errors")
		t.Errorf("%s\ngot  %q, %v\nwant %q\n%s", script, got, err, want, why)
	}
}

// refuse expects a script to fail with a message.
func (m *member) refuse(t *testing.T, script, message string) {
	t.Helper()
	got, err := m.shell(t, script)
	why, _ := m.shell(t, "head -1 ../.dc/errors")
	if err == nil || !strings.Contains(got+why, message) {
		t.Errorf("%s\ngot  %q, %v\nwant %q\n%s", script, got, err, message, why)
	}
}

func TestALogIsAFileThatEveryNodeAppendsTo(t *testing.T) {
	ms := members(t, 2)
	a, b := ms[0], ms[1]
	a.expect(t, `mkdir orders; ls`, `orders`)
	a.refuse(t, `mkdir orders`, `File exists`)
	b.expect(t, `ls orders; ls -a orders | grep -c .dc; ls orders/.dc orders/p orders/p/0`,
		"groups\nlog\np\ntail\n0\norders/.dc:\nctl\nfetch\nproduce\nstat\nstat.json\n\norders/p:\n0\n\norders/p/0:\nlog")
	a.expect(t, `echo "order 1" >> orders/log; printf 'order 2\norder 3' >> orders/log; cat orders/log`, "order 1\norder 2\norder 3")
	b.expect(t, `wc -lc < orders/log; tail -n 2 orders/log; grep -n 2 orders/log; head -c 7 orders/p/0/log; stat -c %s orders/log`,
		"3 24\norder 2\norder 3\n2:order 2\norder 124")
	b.expect(t, `seq 4 100 | sed 's/^/order /' > orders/log; tail -n 1 orders/log; wc -l < orders/log`, "order 100\n100")
	a.expect(t, `sed -n 50p orders/log; python3 -c 'f=open("orders/log"); f.seek(8); print(f.readline(), end="")'`, "order 50\norder 2")
	a.refuse(t, `rmdir orders`, `not empty`)
	a.expect(t, `grep -v created orders/.dc/stat | grep -v last; python3 -c 'import json; print(json.load(open("orders/.dc/stat.json"))["messages"])'`,
		"topic orders\nid 1\npartitions 1\nmessages 100\nbytes 892\nfirst 0\nnext 100\ngroups 0\n100")
	a.expect(t, `echo drop > orders/.dc/ctl; ls`, ``)
	b.expect(t, `mkdir orders; cat orders/log; rmdir orders; ls`, ``)
}

func TestLargeInputsAreCutAtLinesOnly(t *testing.T) {
	m := members(t, 1)[0]
	// Lines of all lengths, so that pages and kernel writes end in the middle of many.
	var want bytes.Buffer
	for i := range 3000 {
		fmt.Fprintf(&want, "%d %s\n", i, strings.Repeat("x", i*37%2000))
	}
	input := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(input, want.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	m.expect(t, `mkdir t; cat `+input+` >> t/log; cmp `+input+` t/log && awk '/^messages/{print $2}' t/.dc/stat`, `3000`)
	m.expect(t, `mkdir u; dd if=`+input+` of=u/log bs=4096 conv=notrunc 2>/dev/null; cmp `+input+` u/log && awk '/^messages/{print $2}' u/.dc/stat`, `3000`)
	// Whole pages without a newline are one message once the file is closed.
	m.expect(t, `mkdir v; head -c 8192 /dev/zero | tr '\0' y >> v/log; wc -lc < v/log`, `1 8193`)
	m.expect(t, `head -c 1048576 /dev/zero | tr '\0' z >> v/log; tail -n 1 v/log | wc -c`, `1048577`)
	m.refuse(t, `head -c 1048577 /dev/zero | tr '\0' z >> v/log`, `MaxValueBytes`)
	m.expect(t, `wc -lc < v/log`, `2 1056770`)
}

func TestFollowing(t *testing.T) {
	ms := members(t, 2)
	a, b := ms[0], ms[1]
	a.expect(t, `mkdir t; echo 0 >> t/log`, ``)
	got := make(chan string, 2)
	for i, script := range []string{`timeout 20 head -n 3 t/tail 2>/dev/null`, `timeout 20 tail -n 1 -f t/log | head -n 3`} {
		go func() {
			out, err := ms[i].shell(t, script)
			if err != nil {
				out += " " + err.Error()
			}
			got <- out
		}()
	}
	// Messages come until both have heard enough, whenever they began to listen; what they heard has no gaps.
	for n, heard := 1, 0; heard < 2; n++ {
		b.expect(t, fmt.Sprintf(`echo %d >> t/log`, n), ``)
		select {
		case text := <-got:
			heard++
			var x, y, z int
			if _, err := fmt.Sscan(text, &x, &y, &z); err != nil || y != x+1 || z != x+2 {
				t.Errorf("heard %q", text)
			}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestConsumerGroups(t *testing.T) {
	ms := members(t, 2)
	a, b := ms[0], ms[1]
	a.expect(t, `mkdir t; seq 5 >> t/log; mkdir t/groups/g; ls t/groups; cat t/groups/g/lag t/groups/g/offset`, "g\n5\n0")
	a.expect(t, `n=0; while read -r m; do echo got $m; n=$((n+1)); [ $n = 3 ] && break; done < t/groups/g/next`, "got 1\ngot 2\ngot 3")
	// 1 and 2 are acknowledged, 3 is leased by a reader that is gone: it comes back after the visibility timeout.
	b.expect(t, `cat t/groups/g/offset t/groups/g/lag; cut -f 5,6 t/groups/g/members`, "2\n3\n1\tworking")
	b.expect(t, `exec 3< t/groups/g/take; read -r x <&3; read -r y <&3; echo "$x"; echo "$y"; echo "$x" > t/groups/g/ack; echo "${y%%	*}" > t/groups/g/nack; cat t/groups/g/lag`,
		"3-4\t4\n4-5\t5\n2")
	b.refuse(t, `echo 3-4 > t/groups/g/ack`, `not leased`)
	b.refuse(t, `echo nonsense > t/groups/g/ack`, `not an id`)
	b.expect(t, `read -r x < t/groups/g/take; echo "$x"`, "4-6\t5")
	b.expect(t, `cat t/groups/g/ctl; echo visibility 1s > t/groups/g/ctl; head -1 t/groups/g/ctl`, "visibility 30s\nmax-deliveries 0\ndead-letter -\nvisibility 1s")
	a.refuse(t, `echo visibility never > t/groups/g/ctl`, `not a duration`)
	// A seek forgets what was leased; now the timeout is a second.
	a.expect(t, `echo earliest > t/groups/g/offset; read -r x < t/groups/g/next; echo $x; sed -n 5p t/log; read -r x < t/groups/g/next; echo $x`, "1\n5\n2")
	a.expect(t, `exec 3< t/groups/g/next; for i in 1 2 3 4 5; do read -r m <&3; echo $m; done | sort`, "1\n2\n3\n4\n5")
	a.expect(t, `cat t/groups/g/lag; echo 3 > t/groups/g/offset; cat t/groups/g/lag; echo latest > t/groups/g/offset; cat t/groups/g/lag`, "1\n2\n0")
	a.refuse(t, `mkdir t/groups/g`, `File exists`)
	a.expect(t, `rmdir t/groups/g; ls t/groups`, ``)
	a.refuse(t, `cat t/groups/g/next`, `No such file`)
}

func TestReadersShareAGroupAndWaitForMessages(t *testing.T) {
	ms := members(t, 2)
	const messages = 60
	ms[0].expect(t, `mkdir t t/groups/g`, ``)
	out := t.TempDir()
	got := make(chan string, 2)
	for i, m := range ms {
		go func() {
			text, err := m.shell(t, fmt.Sprintf(`pids=
for r in 1 2 3; do (while read -r m; do echo $m; done < t/groups/g/next > %[1]s/%[2]d.$r) & pids="$pids $!"; done
until [ -e %[1]s/done ]; do sleep 0.05; done; kill $pids; wait $pids 2>/dev/null; true`, out, i))
			got <- fmt.Sprint(text, err)
		}()
	}
	ms[1].expect(t, fmt.Sprintf(`seq %d | while read -r i; do echo $i >> t/log; done; until [ $(cat t/groups/g/lag) = 0 ]; do sleep 0.05; done; touch %s/done`, messages, out), ``)
	for range ms {
		if text := <-got; text != "<nil>" {
			t.Error(text)
		}
	}
	ms[0].expect(t, `cat `+out+`/*.* | sort -n | uniq -c | awk '$1 != 1' ; cat `+out+`/*.* | wc -l`, fmt.Sprint(messages))
}

func TestDeadLetters(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `mkdir t dead t/groups/g; printf 'poison\nfine\n' >> t/log
printf 'max-deliveries 2\ndead-letter dead\n' > t/groups/g/ctl
for i in 1 2 3; do read -r x < t/groups/g/take; echo "$x"; echo "$x" > t/groups/g/nack; done; cat dead/log; grep dead t/groups/g/stat`,
		"0-1\tpoison\n0-2\tpoison\n1-3\tfine\npoison\ndead 1")
	m.refuse(t, `echo dead-letter nowhere > t/groups/g/ctl`, `no such topic`)
	m.refuse(t, `echo dead-letter t > t/groups/g/ctl`, `round for ever`)
}

func TestProduceAndFetch(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `mkdir t; exec 3<> t/.dc/produce; printf '{"value":"a b"}\n{"value":"\\u00e9"}\n' >&3; cat <&3; cat t/log`, "{\"offset\":0}\n{\"offset\":1}\na b\né")
	m.refuse(t, `echo '{"value":"x","delay":"1s"}' | tee t/.dc/produce`, `only "value" and "fence" are known`)
	m.expect(t, `echo three >> t/log; exec 3<> t/.dc/fetch; echo from=1 limit=2 format=raw >&3; cat <&3`, "é\nthree")
	m.expect(t, `exec 3<> t/.dc/fetch; echo from=2 >&3; cut -d, -f 1,3 <&3`, `{"offset":2,"value":"three"}`)
	m.expect(t, `exec 3<> t/.dc/fetch; echo from=2020-01-01T00:00:00Z format=raw limit=1 >&3; cat <&3`, `a b`)
	m.expect(t, `exec 3<> t/.dc/fetch; echo from=2 follow format=raw limit=2 >&3; (sleep 0.3; echo four >> t/log) & cat <&3`, "three\nfour")
	m.refuse(t, `echo compact key > t/.dc/ctl`, `not there in this version`)
	m.refuse(t, `echo partitions 8 > t/.dc/ctl`, `can only be 1`)
	m.expect(t, `cat t/.dc/ctl > /tmp/ctl.$$; cat /tmp/ctl.$$ > t/.dc/ctl; rm /tmp/ctl.$$`, ``)
}

func TestAReaderKilledWhileItWaitsTakesNothing(t *testing.T) {
	m := members(t, 1)[0]
	// A reader that is killed while it waits has taken nothing.
	m.expect(t, `mkdir t t/groups/g; timeout 0.3 cat t/groups/g/next; echo one >> t/log
read -r x < t/groups/g/next; echo $x; cut -f 5 t/groups/g/members`, "one\n1")
}

// The ledger compares here; whether a lock is held under a token that it has not seen, only srv/node asks.
func TestAnOlderHoldersMessagesAreRefused(t *testing.T) {
	ms := members(t, 2)
	a, b := ms[0], ms[1]
	const log = `exec 6>>t/log; setfattr -n user.dc.fence -v %d@l /dev/fd/6; `
	older, newer := fmt.Sprintf(log, 5), fmt.Sprintf(log, 7)
	a.expect(t, "mkdir t; "+older+`echo old >&6; cat t/log`, "old")
	b.expect(t, newer+`echo new >&6; cat t/log`, "old\nnew")
	a.refuse(t, older+`echo late >&6`, "Stale file handle")
	a.refuse(t, older+`echo late >&6`, "the lock has been taken since, under 7")
	a.expect(t, older+`head -c 4096 /dev/zero >&6 2> /dev/null; exec 6>&-; cat t/log`, "old\nnew") // a beginning, which the close would publish
	const produce = `exec 3<> t/.dc/produce; printf '%s\n' >&3; cat <&3`
	a.refuse(t, fmt.Sprintf(produce, `{"value":"x"}\n{"fence":"5@l","value":"late"}`), "Stale file handle")
	a.refuse(t, fmt.Sprintf(produce, `{"fence":"5@l","value":"x"}\n{"fence":"7@l","value":"y"}`), "Invalid argument")
	a.refuse(t, fmt.Sprintf(produce, `{"fence":"l","value":"x"}`), "Invalid argument")
	b.expect(t, fmt.Sprintf(produce, `{"fence":"7@l","value":"more"}`)+"; cat t/log", "{\"offset\":2}\nold\nnew\nmore")
	a.expect(t, `echo free >> t/log; tail -n 1 t/log`, "free")
}

func TestALogThatIsOpenStaysAsItIsWhileOldMessagesGo(t *testing.T) {
	m := members(t, 1)[0]
	m.expect(t, `mkdir -p t/groups/g; for i in 1 2 3 4 5; do seq -f "$i %05.0f" 1000 >> t/log; done; stat -c %s t/log`, "40000")
	// 8000 bytes a write, and a write is removed whole. What was opened before goes on where it was, or is told that it cannot.
	m.expect(t, `exec 3< t/log 4< t/log; head -c 39920 <&4 > /dev/null; echo 'retention-bytes 16000' > t/.dc/ctl
		until [ $(stat -c %s t/log) = 16000 ]; do sleep 0.05; done
		echo new >> t/log; cat <&4 | tail -n 2; stat -L -c %s /proc/self/fd/4; cat <&3 || true`, "5 01000\nnew\n40004\ncat: -: Stale file handle")
	m.expect(t, `head -n 1 t/log; wc -l < t/log; tail -n 1 t/log; cat t/p/0/log | wc -l; cat t/groups/g/offset t/groups/g/lag`, "4 00001\n2001\nnew\n2001\n3000\n2001")
	m.expect(t, `exec 3< t/groups/g/take; read -r a <&3; echo "$a" | cut -f 2; grep expired t/groups/g/stat`, "4 00001\nexpired 3000")
	m.expect(t, `exec 3<> t/.dc/fetch; echo from=5 limit=1 format=raw >&3; cat <&3; grep -E '^(messages|bytes|first|next)' t/.dc/stat`, "4 00001\nmessages 2001\nbytes 16004\nfirst 3000\nnext 5001")
	m.expect(t, `tail -n 1 -f t/log > /tmp/got.$$ & sleep 0.3; echo 'retention-bytes 1' > t/.dc/ctl; until [ $(stat -c %s t/log) = 4 ]; do sleep 0.05; done; echo more >> t/log; sleep 1.5; kill $!; cat /tmp/got.$$; rm /tmp/got.$$`, "new\nmore")
	m.expect(t, `grep retention t/.dc/ctl; echo 'retention 7d' > t/.dc/ctl; echo 'retention-bytes unlimited' > t/.dc/ctl; grep retention t/.dc/ctl`, "retention unlimited\nretention-bytes 1\nretention 168h0m0s\nretention-bytes unlimited")
	for _, bad := range []string{"retention 7", "retention 0s", "retention -1d", "retention 99999999d", "retention", "retention-bytes 1X", "retention-bytes 0", "retention-bytes"} {
		m.refuse(t, "echo '"+bad+"' > t/.dc/ctl", "unlimited")
	}
}
