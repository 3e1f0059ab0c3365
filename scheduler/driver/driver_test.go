package driver_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"missingos/scheduler/driver"
	"missingos/srv/dc"
)

// The test binary is also the shim, and a daemon that can be stopped and killed.
func TestMain(m *testing.M) {
	switch os.Getenv("DRIVER_TEST_ROLE") {
	case "shim":
		os.Unsetenv("DRIVER_TEST_ROLE")
		os.Exit(driver.ShimMain(nil))
	case "daemon":
		daemon()
		return
	}
	goleak.VerifyTestMain(m)
}

func shim() []string { return []string{"/usr/bin/env", "DRIVER_TEST_ROLE=shim", exe()} }

func exe() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

func newDriver(t *testing.T, dir string) *driver.Driver {
	t.Helper()
	d, err := driver.New(driver.Config{Dir: dir, Shim: shim()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func task(id string, script string) driver.Task {
	return driver.Task{
		ID: id, Script: "#!/bin/bash\n" + script, Env: map[string]string{"DC_INDEX": "0"}, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		MilliCPU: 100, MemoryBytes: 64 * dc.MiB, Grace: 5 * time.Second,
	}
}

func run(t *testing.T, d *driver.Driver, task driver.Task) *driver.Process {
	t.Helper()
	p, err := d.Start(task, driver.Now()+time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); <-p.Done() })
	return p
}

func wait(t *testing.T, p *driver.Process) driver.Exit {
	t.Helper()
	select {
	case <-p.Done():
		return p.Exit()
	case <-time.After(20 * time.Second):
		t.Fatal("the task does not end")
		panic("unreachable")
	}
}

func started(t *testing.T, p *driver.Process) {
	t.Helper()
	select {
	case <-p.Started():
	case <-p.Done():
		t.Fatalf("ended at once: %+v", p.Exit())
	case <-time.After(20 * time.Second):
		t.Fatal("the task does not start")
	}
}

func output(t *testing.T, d *driver.Driver, id string, stream string) string {
	t.Helper()
	size, err := d.Size(id, stream)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	n, err := d.ReadAt(id, stream, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// until polls for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// pidIn reads the number that a task has written to its output.
func pidIn(t *testing.T, d *driver.Driver, id string) int {
	t.Helper()
	var pid int
	until(t, "pid of a child", func() bool {
		if _, err := d.Size(id, driver.Stdout); err != nil {
			return false
		}
		pid, _ = strconv.Atoi(strings.TrimSpace(output(t, d, id, driver.Stdout)))
		return pid > 0
	})
	return pid
}

func TestEnds(t *testing.T) {
	d := newDriver(t, t.TempDir())
	for i, c := range []struct {
		name   string
		task   func(*driver.Task)
		want   driver.Exit
		out    string
		reason string
	}{
		{"success", func(k *driver.Task) { k.Script += "echo out $DC_INDEX; echo err >&2; pwd >/dev/null" }, driver.Exit{}, "out 0\n", ""},
		{"status", func(k *driver.Task) { k.Script += "exit 3" }, driver.Exit{Code: 3}, "", "exit status 3"},
		{"signal", func(k *driver.Task) { k.Script += "kill -SEGV $$" }, driver.Exit{Code: 139, Signal: 11}, "", "SIGSEGV"},
		{"command", func(k *driver.Task) { k.Script, k.Command = "", []string{"echo", "task", "$DC_INDEX"} }, driver.Exit{}, "task 0\n", ""},
		{"no such command", func(k *driver.Task) { k.Script, k.Command = "", []string{"no-such-thing"} }, driver.Exit{Code: 127}, "", "no-such-thing"},
		{"not a program", func(k *driver.Task) { k.Script, k.Command = "", []string{"/etc/passwd"} }, driver.Exit{Code: 126}, "", "permission denied"},
		{"no interpreter", func(k *driver.Task) { k.Script = "#!/no/such\n" }, driver.Exit{Code: 127}, "", "no such file"},
		{"time limit", func(k *driver.Task) { k.Script += "sleep 100"; k.Time = 50 * time.Millisecond }, driver.Exit{Code: 143, Signal: 15, TimedOut: true}, "", "50ms"},
		{"deaf to TERM", func(k *driver.Task) {
			k.Script += "trap '' TERM; while :; do sleep 100; done"
			k.Time, k.Grace = 300*time.Millisecond, 50*time.Millisecond
		}, driver.Exit{Code: 137, Signal: 9, TimedOut: true}, "", "300ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := task(strconv.Itoa(i+1), "")
			c.task(&k)
			got := wait(t, run(t, d, k))
			reason := got.Reason
			got.Reason = ""
			if got != c.want || !strings.Contains(reason, c.reason) || (reason == "") != (c.reason == "") {
				t.Errorf("got %+v (%s), want %+v (%s)", got, reason, c.want, c.reason)
			}
			if c.want.Code < 126 {
				if out := output(t, d, k.ID, driver.Stdout); out != c.out {
					t.Errorf("stdout %q, want %q", out, c.out)
				}
			}
		})
	}
	if out := output(t, d, "1", driver.Stderr); out != "err\n" {
		t.Errorf("stderr %q", out)
	}
	if err := d.Remove("1"); err != nil {
		t.Error(err)
	}
	if _, err := d.Size("1", driver.Stdout); dc.KindOf(err) != dc.NotFound {
		t.Errorf("removed output: %v", err)
	}
}

func TestStopGivesTimeToEnd(t *testing.T) {
	d := newDriver(t, t.TempDir())
	p := run(t, d, task("1", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"))
	until(t, "ready", func() bool {
		n, err := d.Size("1", driver.Stdout)
		return err == nil && n > 0
	})
	p.Stop()
	if got := wait(t, p); got.Code != 7 {
		t.Errorf("got %+v", got)
	}
	if out := output(t, d, "1", driver.Stdout); out != "ready\nbye\n" {
		t.Errorf("stdout %q", out)
	}
}

func TestKillEndsTheWholeTask(t *testing.T) {
	d := newDriver(t, t.TempDir())
	p := run(t, d, task("1", "setsid sleep 1000 & echo $!; wait"))
	child := pidIn(t, d, "1")
	p.Kill()
	if got := wait(t, p); got.Signal != 9 {
		t.Errorf("got %+v", got)
	}
	if alive(child) {
		t.Error("a process of the task outlives it")
	}
}

func TestWhatTheFirstProcessLeavesIsKilled(t *testing.T) {
	d := newDriver(t, t.TempDir())
	p := run(t, d, task("1", "setsid sleep 1000 & echo $!"))
	if got := wait(t, p); got.Code != 0 {
		t.Errorf("got %+v", got)
	}
	if alive(pidIn(t, d, "1")) {
		t.Error("a process of the task outlives it")
	}
}

func TestLeaseEndsTheTaskUnlessExtended(t *testing.T) {
	d := newDriver(t, t.TempDir())
	k := task("1", "sleep 1000")
	p, err := d.Start(k, driver.Now()+200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	started(t, p)
	end := driver.Now() + 600*time.Millisecond
	p.Extend(end)
	got := wait(t, p)
	if now := driver.Now(); now < end || !got.Fenced || !strings.Contains(got.Reason, "lease") {
		t.Errorf("ended %s after its lease: %+v", now-end, got)
	}
	p, err = d.Start(task("2", "echo ran"), driver.Now()-time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := wait(t, p); !got.Fenced {
		t.Errorf("ran after its lease: %+v", got)
	}
}

func TestAShimThatIsKilledTakesItsTaskAlong(t *testing.T) {
	d := newDriver(t, t.TempDir())
	p := run(t, d, task("1", "setsid sleep 1000 & echo $!; wait"))
	started(t, p)
	if strings.Contains(p.Note(), "kill as a whole") {
		t.Skip("here: ", p.Note())
	}
	child := pidIn(t, d, "1")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	shim, err := strconv.Atoi(strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, p); !got.Fenced {
		t.Errorf("got %+v", got)
	}
	if alive(child) || alive(p.PID()) {
		t.Error("the task outlives its shim")
	}
}

func TestMemoryLimit(t *testing.T) {
	d := newDriver(t, t.TempDir())
	k := task("1", "head -c 200M /dev/zero | tail | wc -c; exit ${PIPESTATUS[1]}")
	k.MemoryBytes = 32 * dc.MiB
	p := run(t, d, k)
	got := wait(t, p)
	if strings.Contains(p.Note(), "memory") {
		t.Skip("here: ", p.Note())
	}
	if !got.OOM || got.Code == 0 || !strings.Contains(got.Reason, "32 MiB") {
		t.Errorf("got %+v", got)
	}
}

func TestOutputIsBounded(t *testing.T) {
	d := newDriver(t, t.TempDir())
	p := run(t, d, task("1", "head -c 30M /dev/zero | tr '\\0' x; echo; echo last"))
	if got := wait(t, p); got.Code != 0 {
		t.Fatalf("got %+v", got)
	}
	out := output(t, d, "1", driver.Stdout)
	if len(out) > dc.MaxTaskOutput+100 || !strings.HasPrefix(out, "[") || !strings.HasSuffix(out, "x\nlast\n") {
		t.Fatalf("%d bytes, %.80q ... %q", len(out), out, out[len(out)-10:])
	}
	var dropped int
	if _, err := fmt.Sscanf(out, "[%d bytes", &dropped); err != nil || dropped+len(out)-strings.IndexByte(out, '\n')-1 != 30*dc.MiB+6 {
		t.Errorf("%d dropped of %d kept: %v", dropped, len(out), err)
	}
}

func TestTheTreeIsAtDC(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "mark"), []byte("node 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/dc"); err != nil {
		if err := os.Mkdir("/dc", 0o755); err != nil {
			t.Skip(err)
		}
	}
	d, err := driver.New(driver.Config{Dir: t.TempDir(), Shim: shim(), MountPoint: tree})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	k := task("1", "cat /dc/mark; echo $DC_ROOT; pwd; id -u; id -G; touch mine; ls")
	k.UID, k.GID, k.Groups = 65534, 65534, []uint32{65534, 100}
	if got := wait(t, run(t, d, k)); got.Code != 0 {
		t.Errorf("got %+v: %s", got, output(t, d, "1", driver.Stderr))
	}
	if out, want := output(t, d, "1", driver.Stdout), "node 2\n/dc\n/run/dc/task\n65534\n65534 100\nmine\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if _, err := os.Stat("/dc/mark"); err == nil {
		t.Error("the mount is visible outside")
	}
}

// daemon runs one task and prints the pid of a child of it; then it waits to be killed or stopped. It never renews the lease.
func daemon() {
	d, err := driver.New(driver.Config{Dir: os.Args[1], Shim: shim()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	id := strconv.Itoa(len(d.Kept()) + 1)
	p, err := d.Start(task(id, "setsid sleep 1000 & echo $! ; wait"), driver.Now()+3*time.Second)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-p.Started()
	for {
		if b := make([]byte, 20); true {
			if n, _ := d.ReadAt(id, driver.Stdout, b, 0); n > 0 && b[n-1] == '\n' {
				fmt.Print(string(b[:n]))
				break
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	select {}
}

func TestADaemonThatIsKilledOrStoppedLeavesNoTask(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(exe(), dir)
			cmd.Env = append(os.Environ(), "DRIVER_TEST_ROLE=daemon")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			var child int
			if _, err := fmt.Fscan(out, &child); err != nil || !alive(child) {
				t.Fatalf("child %d: %v", child, err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			until(t, "the task is gone", func() bool { return !alive(child) })
			if sig == syscall.SIGKILL {
				newDriver(t, dir)
			}
		})
	}
}
