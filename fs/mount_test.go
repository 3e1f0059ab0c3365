package fs_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"missingos/fs"
	"missingos/fs/synth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mount attaches a room "t" and detaches it, within its deadline, when the test is over.
func mount(t *testing.T, room synth.Dir) (string, *fs.Mounted) {
	t.Helper()
	m, err := fs.Mount(fs.Config{
		Mountpoint: filepath.Join(t.TempDir(), "dc"),
		Node:       7,
		Rooms:      map[string]synth.Dir{"t": room},
		Stat:       func(context.Context) ([]synth.Pair, error) { return []synth.Pair{{Key: "nodes", Value: 3}}, nil },
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return m.Path(), m
}

// shell runs a script in dir and gives what it printed, both streams. The script itself goes to dir: between fork and exec the child shares the memory of this
// process, whose other threads may have to stop before the child goes on, and they are who would answer its chdir(2).
func shell(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "cd "+dir+"\n"+script)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// expect runs a script that must succeed and print want.
func expect(t *testing.T, dir, script, want string) {
	t.Helper()
	got, err := shell(t, dir, script)
	if err != nil {
		t.Errorf("%s\n%s: %v", script, got, err)
		return
	}
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s\ngot  %q\nwant %q", script, got, want)
	}
}
