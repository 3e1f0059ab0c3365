package fs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"missingos/fs"
	"missingos/fs/synth"
	"missingos/srv/dc"
)

// daemonEnv makes the test binary a daemon that mounts at the variable's value until its standard input ends.
const daemonEnv = "DC_TEST_MOUNT_AT"

func init() {
	at := os.Getenv(daemonEnv)
	if at == "" {
		return
	}
	m, err := fs.Mount(fs.Config{Mountpoint: at, Node: 1, Rooms: map[string]synth.Dir{"t": newMemory("t")}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("mounted")
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// daemon starts a process that mounts at path.
func daemon(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd, _ := start(t, exe, path)
	return cmd
}

// start starts the test binary exe as a daemon that mounts at path; prefix is a command to start it with.
func start(t *testing.T, exe, path string, prefix ...string) (cmd *exec.Cmd, stop func() error) {
	t.Helper()
	args := append(prefix, exe)
	cmd = exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), daemonEnv+"="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() error {
		stopped = true
		_ = in.Close()
		return cmd.Wait()
	}
	t.Cleanup(func() {
		if !stopped {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "mounted\n" {
		t.Skipf("cannot mount here: %s %v", line, err)
	}
	return cmd, stop
}

func TestTheMountOfAKilledDaemonIsClearedAway(t *testing.T) {
	at := filepath.Join(t.TempDir(), "dc")
	cmd := daemon(t, at)
	if _, err := fs.Mount(fs.Config{Mountpoint: at}); !errors.Is(err, dc.Busy) || !strings.Contains(err.Error(), "running daemon") {
		t.Errorf("got %v over a live mount, want it refused", err)
	}
	held, err := os.Open(at) // somebody is inside when it dies
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	until(t, "the mount dead", func() bool {
		_, err := os.Stat(at)
		return err != nil && strings.Contains(err.Error(), "endpoint is not connected")
	})
	m, err := fs.Mount(fs.Config{Mountpoint: at, Rooms: map[string]synth.Dir{"t": newMemory("t")}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, at, `ls`, "t")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(at); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v at the mount point afterwards, want an empty directory", entries, err)
	}
}

func TestMountsOverOtherThingsAreRefused(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(full, "thesis")
	for _, c := range []struct {
		at   string
		kind dc.Kind
		says string
	}{
		{full, dc.NotEmpty, "thesis"},
		{file, dc.Invalid, "not a directory"},
		{"/proc", dc.Busy, "type proc"},
		{"", dc.Invalid, "no mount point"},
	} {
		_, err := fs.Mount(fs.Config{Mountpoint: c.at})
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: got %v, want %v that says %q", c.at, err, c.kind, c.says)
		}
	}
}

func TestUnmountWhileSomebodyIsInside(t *testing.T) {
	dir, m := mount(t, newMemory("t"))
	cmd := exec.Command("bash", "-c", "cd "+dir+"/t && echo in && exec 5>f && read; echo more >&5 || echo cut off")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if l, _ := lines.ReadString('\n'); l != "in\n" {
		t.Fatalf("got %q", l)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v at the mount point, want an empty directory", entries, err)
	}
	_ = in.Close()
	if l, _ := lines.ReadString('\n'); l != "cut off\n" {
		t.Errorf("got %q from who was inside, want cut off", l)
	}
	_ = cmd.Wait()
}

func TestUnmountFromOutsideEndsTheServer(t *testing.T) {
	dir, m := mount(t, newMemory("t"))
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		t.Skipf("%s %v", out, err)
	}
	select {
	case <-m.Done():
	case <-time.After(5 * time.Second):
		t.Error("the server still runs")
	}
}

func TestOrdinaryUsersMountThroughFusermount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root to become another user")
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip(err)
	}
	// The test's own directory is closed to others.
	home, err := os.MkdirTemp("/tmp", "dc-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(home, "fs.test") // go test's is closed to others, too
	if out, err := exec.Command("cp", exe, own).CombinedOutput(); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	nobody, err := user.Lookup("nobody") // fusermount3 wants a user with a name
	if err != nil {
		t.Skip(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	if err := os.Chown(home, uid, -1); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(home, "dc")
	as := []string{"setpriv", "--reuid", nobody.Uid, "--regid", nobody.Gid, "--clear-groups"}
	_, stop := start(t, own, at, as...)
	script := exec.Command(as[0], append(as[1:], "bash", "-c", "cd "+at+"; echo 1 > t/x; cat t/x; grep ^uid .dc/whoami")...)
	if out, err := script.CombinedOutput(); err != nil || string(out) != "1\nuid "+nobody.Uid+"\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if err := stop(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if entries, err := os.ReadDir(at); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v at the mount point afterwards, want an empty directory", entries, err)
	}
}

// TestChildrenDoNotInheritTheConnection: a task that outlives its killed daemon must not keep the mount waiting for ever.
func TestChildrenDoNotInheritTheConnection(t *testing.T) {
	mount(t, newMemory("t"))
	out, err := exec.CommandContext(t.Context(), "bash", "-c", "readlink /proc/self/fd/* || true; ls -l /proc/$$/fd").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("a child has the descriptor of the connection:\n%s", out)
	}
}
