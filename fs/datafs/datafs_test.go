package datafs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"go.uber.org/goleak"

	"missingos/fs"
	"missingos/fs/datafs"
	"missingos/fs/synth"
	"missingos/srv/data/datatest"
	"missingos/srv/dc"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(mapPath); path != "" {
		mapFile(path)
		return
	}
	if path := os.Getenv(watchPath); path != "" {
		watchFile(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// mount attaches node n's /dc and gives the path of its data directory.
func mount(t *testing.T, c *datatest.Cluster, n dc.NodeID) string {
	t.Helper()
	return mountOf(t, c.Client(n), n)
}

// mountOf is mount with a service of the test's own.
func mountOf(t *testing.T, service datafs.Service, n dc.NodeID) string {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE here")
	}
	door := synth.NewDoor(n, nil)
	data := datafs.New(datafs.Config{Service: service, Door: door, Node: n})
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // so that tests can be other users
		t.Fatal(err)
	}
	m, err := fs.Mount(fs.Config{Mountpoint: filepath.Join(dir, "dc"), Node: n, Door: door, Data: data, KillPriv: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Error(err)
		}
		if err := data.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(m.Path(), "data")
}

// clusterMounts names the /dc of two nodes of a running cluster (colon between), to run these tests on instead of services in this process.
const clusterMounts = "DC_TEST_MOUNTS"

// two gives the data directories of two nodes: a fresh one of a running cluster, or of services in this process.
func two(t *testing.T) (a, b string) {
	t.Helper()
	given := os.Getenv(clusterMounts)
	if given == "" {
		c := datatest.New(t, 3)
		return mount(t, c, 1), mount(t, c, 2)
	}
	first, second, _ := strings.Cut(given, ":")
	top, err := os.MkdirTemp(filepath.Join(first, "data"), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	return top, filepath.Join(second, "data", filepath.Base(top))
}

func TestPosix(t *testing.T) {
	root, _ := two(t)
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // it wants two descriptors of one process to exclude each other, which POSIX forbids and ext4 does not do
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(root, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			fn(t, dir)
		})
	}
}

// A file without a name can be opened again where it is open, as /proc/self/fd has it.
func TestAnOpenFileWithoutANameIsOpenedAgain(t *testing.T) {
	c := datatest.New(t, 1)
	dir := mount(t, c, 1)
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("still here"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil || string(b) != "still here" {
		t.Errorf("read %q, %v", b, err)
	}
}
