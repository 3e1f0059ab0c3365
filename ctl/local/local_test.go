package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeDaemon stands in for dcd: init and join make the directory, run waits for a signal.
const fakeDaemon = `#!/bin/bash
verb=$1; shift
while [ $# -gt 0 ]; do case $1 in --dir) dir=$2;; --mount) mount=$2;; esac; shift; done
case $verb in
init|join) mkdir -p "$dir" "$mount/.dc"; touch "$mount/.dc/stat" ;;
run) [ -e "$dir/refuse" ] && { echo "refused"; exit 1; }; exec sleep 1000 ;;
esac
`

func open(t *testing.T, dir string, nodes int) *Cluster {
	t.Helper()
	dcd := filepath.Join(dir, "dcd")
	if _, err := os.Stat(dcd); err != nil { // a second time a daemon may just be reading it
		if err := os.WriteFile(dcd, []byte(fakeDaemon), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(Config{
		Dir: filepath.Join(dir, "c"), Nodes: nodes, Mount: filepath.Join(dir, "dc"), Dcd: dcd,
		Status: func(context.Context, string) (Status, error) { return Status{Nodes: 3, Groups: 6, Total: 6}, nil },
		Token:  func(context.Context, string) (string, error) { return "token", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Down(context.Background()) })
	return c
}

func TestUpIsIdempotentAndDownEndsEverything(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 3)
	if err := c.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := fmt.Sprint(c.List())
	again := open(t, dir, 3)
	if err := again.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(again.List()); got != first {
		t.Errorf("a second up changed\n%s to\n%s", first, got)
	}
	if err := again.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range again.List() {
		if n.PID != 0 {
			t.Errorf("node %d still runs", n.N)
		}
	}
	if err := again.Down(t.Context()); err != nil {
		t.Errorf("down with nothing running: %v", err)
	}
}

func TestKillPauseResumeStart(t *testing.T) {
	c := open(t, t.TempDir(), 3)
	if err := c.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Pause(2), c.Resume(2), c.Kill(t.Context(), 2)); err != nil {
		t.Fatal(err)
	}
	if c.List()[1].PID != 0 {
		t.Error("node 2 runs after kill")
	}
	if err := c.Kill(t.Context(), 2); err == nil {
		t.Error("killing a dead node is not an error")
	}
	if err := c.Start(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if c.List()[1].PID == 0 {
		t.Error("node 2 does not run after start")
	}
	if err := c.Kill(t.Context(), 9); err == nil || !strings.Contains(err.Error(), "no node 9") {
		t.Errorf("kill 9: %v", err)
	}
}

func TestAPausedNodeCanBeStopped(t *testing.T) {
	c := open(t, t.TempDir(), 1)
	if err := errors.Join(c.Up(t.Context()), c.Pause(1), c.Down(t.Context())); err != nil {
		t.Fatal(err)
	}
	if c.List()[0].PID != 0 {
		t.Error("node 1 runs after down")
	}
}

func TestAStrangersPidIsNeverSignalled(t *testing.T) {
	c := open(t, t.TempDir(), 1)
	if err := c.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The dead daemon's pid now belongs to this test process.
	if err := os.WriteFile(c.pidFile(1), fmt.Appendf(nil, "%d 1\n", os.Getpid()), 0o644); err != nil {
		t.Fatal(err)
	}
	if c.running(1) {
		t.Fatal("a process with another start time counts as the daemon")
	}
	if err := c.Kill(t.Context(), 1); err == nil {
		t.Error("kill of a daemon that does not run is not an error")
	}
}

func TestADaemonThatEndsAtOnceIsReportedWithItsLog(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 1)
	if err := c.define(); err != nil {
		t.Fatal(err)
	}
	if err := c.admit(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.NodeDir(1), "refuse"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.cfg.Status = func(context.Context, string) (Status, error) { return Status{}, errors.New("no answer") }
	err := c.Up(t.Context())
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want the daemon's own words", err)
	}
}
