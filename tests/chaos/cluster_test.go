//go:build long

package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const nodes = 3

// cluster is three daemons made by `dcctl local up`.
type cluster struct{ bin, dir string }

// newCluster builds the binaries and starts the cluster; all of it is gone after the test. DC_CHAOS_DIR names the directory of a cluster
// of `dcctl local up` to use instead, with the binaries in PATH.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	if dir := os.Getenv("DC_CHAOS_DIR"); dir != "" {
		bin, err := exec.LookPath("dcctl")
		if err != nil {
			t.Fatal(err)
		}
		return &cluster{bin: filepath.Dir(bin), dir: dir}
	}
	tmp, err := os.MkdirTemp("", "dc-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{bin: filepath.Join(tmp, "bin"), dir: filepath.Join(tmp, "c")}
	t.Cleanup(func() { c.clear(t, tmp) })
	build := exec.Command("go", "build", "-o", c.bin+"/", "./cmd/dcd", "./cmd/dcctl")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if out, err := c.dcctl("local", "up", "--nodes", strconv.Itoa(nodes), "--mount", c.mount(1)); err != nil {
		t.Fatalf("local up: %v\n%s\n%s", err, out, c.state())
	}
	return c
}

func (c *cluster) mount(n int) string {
	if n == 1 {
		return filepath.Join(c.dir, "dc")
	}
	return filepath.Join(c.dir, "n"+strconv.Itoa(n), "dc")
}

// healed waits until every mount shows every tree.
func (c *cluster) healed(t *testing.T, trees []string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for n := 1; n <= nodes; n++ {
		for _, tree := range trees {
			for {
				_, err := os.ReadDir(filepath.Join(c.mount(n), tree, "chaos"))
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the cluster did not heal: %v\n%s", err, c.state())
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
}

// dcctl runs dcctl on the cluster's directory.
func (c *cluster) dcctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "dcctl"), args...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "DC_DIR="+c.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// state is the ends of the daemons' logs, for the text of a failure.
func (c *cluster) state() string {
	var b strings.Builder
	for n := 1; n <= nodes; n++ {
		log, err := os.ReadFile(filepath.Join(c.dir, "n"+strconv.Itoa(n), "dcd.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		fmt.Fprintf(&b, "--- the end of node %d's log\n%s\n", n, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
	status, _ := c.dcctl("status")
	return b.String() + status
}

// clear stops the daemons and removes everything; after a failure it leaves the directory for a look.
func (c *cluster) clear(t *testing.T, tmp string) {
	if out, err := c.dcctl("local", "down"); err != nil {
		t.Errorf("local down: %v\n%s", err, out)
	}
	for n := 1; n <= nodes; n++ {
		_ = exec.Command("umount", "-l", c.mount(n)).Run() // in case that it is left
	}
	if t.Failed() {
		t.Logf("the cluster's files are left in %s", tmp)
		return
	}
	_ = os.RemoveAll(tmp)
}
