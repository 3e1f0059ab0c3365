package fs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"missingos/fs/synth"
	"missingos/srv/dc"
)

// feed is a topic in memory: what is published reaches every reader.
type feed struct {
	mu      sync.Mutex
	lines   []string
	changed chan struct{}
	readers atomic.Int64
}

func newFeed() *feed { return &feed{changed: make(chan struct{})} }

func (f *feed) publish(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, line)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed) from(n int) ([]string, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lines[n:], f.changed
}

// follow emits all lines, old and new, until "end".
func (f *feed) follow(ctx context.Context, emit func([]byte) error) error {
	f.readers.Add(1)
	defer f.readers.Add(-1)
	at := 0
	for {
		lines, changed := f.from(at)
		for _, l := range lines {
			if l == "end" {
				return nil
			}
			if err := emit([]byte(l + "\n")); err != nil {
				return err
			}
			at++
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *feed) file(key string) synth.Node {
	return synth.Stream(key, synth.StreamSpec{Open: func(ctx context.Context, _ uint32) (synth.Source, error) {
		return synth.Pipe(ctx, f.follow), nil
	}})
}

// until polls for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func TestStreamsBlockDeliverAndAreInterrupted(t *testing.T) {
	f := newFeed()
	room := newMemory("t")
	room.extra["tail"] = f.file("t/tail")
	dir, m := mount(t, room)

	f.publish("first")
	// head(1) wants to seek back over what it read too much, and says so, though it need not.
	expect(t, dir, `head -n 1 t/tail 2>/dev/null`, "first")
	expect(t, dir, `timeout -s INT 0.3 cat t/tail; echo $?`, "first\n124")
	expect(t, dir, `cat t/tail & sleep 0.2; kill -9 $!; wait $! 2>/dev/null; echo killed`, "first\nkilled")
	expect(t, dir, `python3 - <<'E'
import os
fd = os.open("t/tail", os.O_RDONLY | os.O_NONBLOCK)
import time
for i in range(100):
    try:
        print(os.read(fd, 100).decode().strip()); break
    except BlockingIOError: time.sleep(0.01)
try: os.read(fd, 100)
except BlockingIOError as e: print(e.strerror)
E`, "first\nResource temporarily unavailable")
	expect(t, dir, `while read -r l; do echo "got $l"; break; done < t/tail`, "got first")
	done := make(chan string, 1)
	go func() {
		out, err := shell(t, dir, `cat t/tail`)
		done <- fmt.Sprint(out, err)
	}()
	until(t, "a reader", func() bool { return f.readers.Load() == 1 })
	f.publish("second")
	f.publish("end")
	if got, want := <-done, "first\nsecond\n<nil>"; got != want {
		t.Errorf("got %q from a stream that ended, want %q", got, want)
	}
	until(t, "all handles released", func() bool { return f.readers.Load() == 0 })
	_ = m
}

// The Go runtime makes every file that epoll takes non-blocking, FUSE files among them, and polls for what never comes.
func TestGoProgramsReadStreams(t *testing.T) {
	f := newFeed()
	room := newMemory("t")
	room.extra["tail"] = f.file("t/tail")
	dir, _ := mount(t, room)
	file, err := os.Open(dir + "/t/tail")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	go func() {
		until(t, "a reader", func() bool { return f.readers.Load() == 1 })
		for range 3 {
			f.publish("line")
			time.Sleep(20 * time.Millisecond)
		}
		f.publish("end")
	}()
	got, err := io.ReadAll(file)
	if string(got) != "line\nline\nline\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAThousandBlockedReadersStarveNobody(t *testing.T) {
	const n = 1000
	f := newFeed()
	room := newMemory("t")
	room.extra["tail"] = f.file("t/tail")
	dir, _ := mount(t, room)
	// One process holds them all, as threads do.
	script := fmt.Sprintf(`import os, threading, sys
got = []
def read():
    fd = os.open("t/tail", os.O_RDONLY)
    data = b""
    while not data.endswith(b"go\n"): data += os.read(fd, 4096)
    got.append(data)
threading.stack_size(65536)
ts = [threading.Thread(target=read) for _ in range(%d)]
for x in ts: x.start()
for x in ts: x.join()
print(len(got), set(got) == {b"go\n"})`, n)
	done := make(chan string, 1)
	go func() {
		out, err := shell(t, dir, "python3 -c '"+strings.ReplaceAll(script, "'", `'\''`)+"'")
		done <- fmt.Sprint(strings.TrimSpace(out), " ", err)
	}()
	until(t, "a thousand readers", func() bool { return f.readers.Load() == n })
	start := time.Now()
	expect(t, dir, `for i in 1 2 3 4 5 6 7 8 9 10; do echo $i > t/other; cat t/other; done | tail -1; ls t`, "10\nother\ntail")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("ten writes and reads took %v beside blocked readers", took)
	}
	f.publish("go")
	if got, want := <-done, "1000 True <nil>"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnmountEndsBlockedReaders(t *testing.T) {
	f := newFeed()
	room := newMemory("t")
	room.extra["tail"] = f.file("t/tail")
	dir, m := mount(t, room)
	done := make(chan string, 1)
	go func() {
		out, _ := shell(t, dir, `cat t/tail; echo "cat ended with $?"`)
		done <- out
	}()
	until(t, "a reader", func() bool { return f.readers.Load() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if out := <-done; !strings.Contains(out, "cat ended with 1") {
		t.Errorf("got %q from the reader", out)
	}
	if n := f.readers.Load(); n != 0 {
		t.Errorf("%d streams still run after the unmount", n)
	}
}

// sum is a clone file that adds numbers up.
type sum struct {
	validated, committed atomic.Int64
	hold                 chan struct{} // when set, a commit waits for it
	last                 atomic.Value
}

func (s *sum) file(key string) synth.Node {
	add := func(req []byte) (int, error) {
		total := 0
		for line := range strings.Lines(string(req)) {
			var n int
			if _, err := fmt.Sscan(line, &n); err != nil {
				return 0, dc.Errorf(dc.Invalid, "sum", "", "line %q is no number", strings.TrimSpace(line))
			}
			total += n
		}
		return total, nil
	}
	return synth.Clone(key, synth.CloneSpec{
		Usage: "write numbers, one a line; read their sum\n",
		Validate: func(_ context.Context, req []byte) error {
			s.validated.Add(1)
			_, err := add(req)
			return err
		},
		Commit: func(ctx context.Context, req []byte) (synth.Source, error) {
			if s.hold != nil {
				<-s.hold
			}
			total, err := add(req)
			if err != nil {
				return nil, err
			}
			s.committed.Add(1)
			s.last.Store(total)
			return synth.Bytes(fmt.Appendf(nil, "%d\n", total)), nil
		},
	})
}

func TestCloneFiles(t *testing.T) {
	s := &sum{}
	room := newMemory("t")
	room.extra["sum"] = s.file("t/sum")
	dir, _ := mount(t, room)
	for _, c := range []struct {
		name, script, want string
		commits            int64
	}{
		{"write then read on one descriptor", `exec 3<>t/sum; seq 10 >&3; cat <&3`, "55", 1},
		{"several writes", `exec 3<>t/sum; echo 1 >&3; echo 2 >&3; (echo 3; echo 4) >&3; cat <&3`, "10", 1},
		{"one request after the other", `exec 3<>t/sum; echo 1 >&3; read -r a <&3; echo 2 >&3; read -r b <&3; echo $a $b`, "1 2", 2},
		{"each opener has its own", `exec 3<>t/sum 4<>t/sum; echo 1 >&3; echo 2 >&4; cat <&4 <&3; cat <&4`, "1\n2", 2},
		{"usage", `cat t/sum`, "write numbers, one a line; read their sum", 0},
		{"cp commits at release, and the next look sees it", `seq 4 > /tmp/$$.n; cp /tmp/$$.n t/sum && ls t > /dev/null; rm /tmp/$$.n`, "", 1},
		{"touch and truncate commit nothing", `: > t/sum; touch t/sum; true < t/sum; ls t`, "sum", 0},
		{"cp reports a bad request, which is not committed", `echo x > /tmp/$$.n; cp /tmp/$$.n t/sum 2>&1 | grep -o 'Invalid argument'; rm /tmp/$$.n; grep -o 'line "x" is no number' .dc/errors`, "Invalid argument\nline \"x\" is no number", 0},
		{"the reader gets the error", `exec 3<>t/sum; echo y >&3; cat <&3 2>&1 | grep -o 'Invalid argument'`, "Invalid argument", 0},
		{"over the limit", `head -c 300000 /dev/zero > t/sum; grep -o 'exceeds the limit of 262144 bytes' .dc/errors`, "exceeds the limit of 262144 bytes", 0},
		{"a program", `python3 -c '
with open("t/sum", "r+b", buffering=0) as f:
    f.write(b"20\n22\n"); print(int(f.read()))'`, "42", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.committed.Load()
			out, _ := shell(t, dir, c.script)
			out = strings.ReplaceAll(out, "head: error writing 'standard output': File too large\n", "")
			if got := strings.TrimSpace(out); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got := s.committed.Load() - before; got != c.commits {
				t.Errorf("got %d commits, want %d", got, c.commits)
			}
		})
	}
}

func TestALookWaitsForACommitButNotForEver(t *testing.T) {
	s := &sum{hold: make(chan struct{})}
	room := newMemory("t")
	room.extra["sum"] = s.file("t/sum")
	dir, _ := mount(t, room)
	fd, err := os.OpenFile(dir+"/t/sum", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fd.WriteString("7\n"); err != nil {
		t.Fatal(err)
	}
	if err := fd.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := os.ReadDir(dir + "/t"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < synth.SettleWait/2 || took > 20*synth.SettleWait {
		t.Errorf("a listing took %v beside a commit that hangs, want about %v", took, synth.SettleWait)
	}
	close(s.hold)
	until(t, "the commit", func() bool { return s.committed.Load() == 1 })
	if s.last.Load() != 7 {
		t.Errorf("got %v committed, want 7", s.last.Load())
	}
}

func TestControlFilesRunLinesInOrder(t *testing.T) {
	var mu sync.Mutex
	var log []string
	room := newMemory("t")
	room.extra["ctl"] = synth.Ctl("t/ctl", synth.CtlSpec{
		Commands: []synth.Command{
			{Name: "say", Usage: "WORD ...", Do: func(_ context.Context, args []string) error {
				if len(args) == 0 {
					return dc.Errorf(dc.Invalid, "", "", "nothing to say")
				}
				mu.Lock()
				defer mu.Unlock()
				log = append(log, strings.Join(args, "-"))
				return nil
			}},
			{Name: "explode", Do: func(context.Context, []string) error { panic("boom") }},
		},
		Settings: func(context.Context) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			var b bytes.Buffer
			for _, l := range log {
				fmt.Fprintf(&b, "say %s\n", l)
			}
			return b.Bytes(), nil
		},
	})
	dir, _ := mount(t, room)
	expect(t, dir, `printf 'say a b\n# comment\n\nsay c\n' > t/ctl; cat t/ctl; wc -l < t/ctl`, "say a-b\nsay c\n2")
	// One write(2); bash's own printf makes one of each line.
	expect(t, dir, `env printf 'say d\nshout\nsay e\n' > t/ctl || cat t/ctl`, "printf: write error: Invalid argument\nsay a-b\nsay c\nsay d")
	expect(t, dir, `echo say > t/ctl 2>/dev/null; head -1 .dc/errors | cut -d' ' -f3-`, "ctl t/ctl: say: nothing to say (usage: say WORD ...)")
	expect(t, dir, `echo explode > t/ctl 2>&1 | grep -o 'Input/output error'; echo say f >> t/ctl; tail -1 t/ctl`, "say f")
	expect(t, dir, `cp t/ctl /tmp/$$.ctl; cp /tmp/$$.ctl t/ctl; rm /tmp/$$.ctl; wc -l < t/ctl`, "8")
}

func TestLocksAmongProcessesOfAMount(t *testing.T) {
	room := newMemory("t")
	room.files["f"] = &memoryFile{key: "t/f", mode: 0o666}
	dir, m := mount(t, room)
	expect(t, dir, `exec 9>t/f; flock 9; flock -n t/f true; echo $?; flock -u 9; flock -n t/f echo free`, "1\nfree")
	expect(t, dir, `exec 8<t/f 9<t/f; flock -s 8; flock -s -n 9 && echo shared; flock -n -x t/f true || echo held; exec 8>&- 9>&-; flock -w 5 -x t/f echo free`, "shared\nheld\nfree")
	expect(t, dir, `flock t/f sleep 0.2 & until ! flock -n t/f true; do :; done; flock t/f echo after; wait`, "after")
	expect(t, dir, `flock t/f sleep 5 >/dev/null 2>&1 & p=$!; until ! flock -n t/f true; do :; done; timeout -s INT 0.2 flock t/f true; echo $?; kill $p $(cat /proc/$p/task/$p/children); wait $p 2>/dev/null; true`, "124")
	expect(t, dir, `python3 - <<'E'
import fcntl, os, struct
f = open("t/f", "r+b")
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
pid = os.fork()
if pid == 0:
    g = open("t/f", "r+b")
    try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5); print("both")
    except OSError as e: print(e.strerror)
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10); print("beside")
    import sys; sys.stdout.flush(); os._exit(0)
os.waitpid(pid, 0)
f.close()
g = open("t/f", "r+b"); fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB); print("free")
E`, "Resource temporarily unavailable\nbeside\nfree")
	_ = m
}

// held is a file with a lock of the cluster's, as those of /dc/lock.
type held struct {
	memoryFile
	mu     sync.Mutex
	owner  uint64
	events []string
	freed  chan struct{}
}

type heldHandle struct {
	memoryHandle
	h *held
}

func (f *held) Open(context.Context, uint32) (synth.Handle, error) {
	return &heldHandle{memoryHandle{f: &f.memoryFile}, f}, nil
}

func (h *heldHandle) Lock(ctx context.Context, owner uint64, _, wait bool) error {
	for {
		h.h.mu.Lock()
		if h.h.owner == 0 || h.h.owner == owner {
			h.h.owner = owner
			h.h.events = append(h.h.events, "lock")
			h.h.mu.Unlock()
			return nil
		}
		freed := h.h.freed
		h.h.mu.Unlock()
		if !wait {
			return dc.Errorf(dc.Again, "lock", h.h.key, "held elsewhere")
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *heldHandle) Unlock(_ context.Context, owner uint64) error {
	h.h.mu.Lock()
	defer h.h.mu.Unlock()
	if h.h.owner == owner {
		h.h.owner = 0
		h.h.events = append(h.h.events, "unlock")
		close(h.h.freed)
		h.h.freed = make(chan struct{})
	}
	return nil
}

func TestLocksOfTheCluster(t *testing.T) {
	f := &held{memoryFile: memoryFile{key: "t/leader", mode: 0o666}, freed: make(chan struct{})}
	room := newMemory("t")
	room.extra["leader"] = f
	dir, _ := mount(t, room)
	expect(t, dir, `flock t/leader echo held; flock -n t/leader echo again`, "held\nagain")
	expect(t, dir, `exec 9<t/leader; flock 9; flock -n t/leader true || echo busy; flock t/leader echo next 9<&- & sleep 0.1; exec 9<&-; wait`, "busy\nnext")
	expect(t, dir, `flock t/leader sh -c 'kill -9 $$ $PPID' 2>/dev/null & wait $! 2>/dev/null; flock -w 5 t/leader echo inherited`, "inherited")
	expect(t, dir, `python3 -c '
import fcntl
f = open("t/leader", "r+"); fcntl.lockf(f, fcntl.LOCK_EX); print("whole")
f.close(); f = open("t/leader", "r+"); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print("released by close")
try: fcntl.lockf(f, fcntl.LOCK_EX, 10)
except OSError as e: print(e.strerror)'`, "whole\nreleased by close\nOperation not supported")
}

// slow answers when its caller is interrupted, or not at all.
type slow struct {
	memoryFile
	entered chan struct{}
}

func (f *slow) Open(ctx context.Context, _ uint32) (synth.Handle, error) {
	f.entered <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestInterruptedOperationsEndAfterTheGrace(t *testing.T) {
	f := &slow{memoryFile: memoryFile{key: "t/slow", mode: 0o666}, entered: make(chan struct{}, 1)}
	room := newMemory("t")
	room.extra["slow"] = f
	dir, _ := mount(t, room)
	done := make(chan string, 1)
	start := time.Now()
	go func() {
		out, _ := shell(t, dir, `timeout -s INT 0.2 cat t/slow; echo $?`)
		done <- strings.TrimSpace(out)
	}()
	<-f.entered
	if got := <-done; got != "124" {
		t.Errorf("got %q, want the 124 of timeout(1)", got)
	}
	if took := time.Since(start); took < synth.InterruptGrace || took > 5*synth.InterruptGrace {
		t.Errorf("took %v, want a little more than the grace of %v", took, synth.InterruptGrace)
	}
}

func TestEINTRReachesTheCaller(t *testing.T) {
	f := newFeed()
	room := newMemory("t")
	room.extra["tail"] = f.file("t/tail")
	dir, _ := mount(t, room)
	expect(t, dir, `python3 - <<'E'
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *a: None)
signal.siginterrupt(signal.SIGALRM, True)
fd = os.open("t/tail", os.O_RDONLY)
signal.setitimer(signal.ITIMER_REAL, 0.1)
n = libc.read(fd, ctypes.create_string_buffer(10), 10)
print(n, os.strerror(ctypes.get_errno()))
E`, "-1 Interrupted system call")
}

// stuck is a file whose every look-up but the first waits for a quorum that is gone.
type stuck struct {
	memory
	lookups atomic.Int64
}

func (d *stuck) Lookup(ctx context.Context, name string) (synth.Node, error) {
	if d.lookups.Add(1) == 1 {
		return d.memory.Lookup(ctx, name)
	}
	time.Sleep(1100 * time.Millisecond)
	return nil, dc.Errorf(dc.Unavailable, "lookup", name, "the group has no leader")
}

func TestALookupFailsOnce(t *testing.T) {
	room := &stuck{memory: memory{key: "t", files: map[string]*memoryFile{}}}
	room.files["f"] = &memoryFile{key: "t/f", mode: 0o666}
	dir, _ := mount(t, room)
	expect(t, dir, `cat t/f; cat t/f 2>&1 | grep -o 'Input/output error'`, "Input/output error")
	if n := room.lookups.Load(); n != 2 {
		t.Errorf("the room was asked %d times, want 2: once before the quorum was gone, once after", n)
	}
}
