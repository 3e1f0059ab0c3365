package fs_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"missingos/fs"
	"missingos/fs/nullfs"
	"missingos/fs/synth"
)

func TestDataAndSyntheticFilesShareOneMount(t *testing.T) {
	room := newMemory("t")
	m, err := fs.Mount(fs.Config{
		Mountpoint: filepath.Join(t.TempDir(), "dc"),
		Rooms:      map[string]synth.Dir{"t": room, "a": newMemory("a")},
		Data:       nullfs.New(fs.DataRoot, 0),
	})
	if err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Error(err)
		}
	}()
	dir := m.Path()
	for _, c := range []struct{ name, script, want string }{
		{"list", `ls; ls -a | tr '\n' ' '; stat -c %i data; ls -id data | cut -d' ' -f1`, "a\ndata\nt\n. .. a data t 2\n2"},
		{"tree", `mkdir data/d; seq 100000 > data/d/f; cp -r data/d data/e; cmp data/d/f data/e/f; rm -r data/d; ls data data/e`, "data:\ne\n\ndata/e:\nf"},
		{"what one server lacks the other keeps", `setfattr -n user.x -v 1 data/e/f 2>&1 | grep -o 'Operation not supported'; echo 1 > t/f; setfattr -n user.x -v 1 t/f && getfattr --only-values -n user.x t/f; echo;
			fallocate -l 10 t/f 2>&1 | grep -o 'Operation not supported'; sync data/e/f t/f; flock t/f echo locked`, "Operation not supported\n1\nOperation not supported\nlocked"},
		{"mv between rooms copies", `echo x > data/x; mv data/x t/x; cat t/x; ls data; mv t/x a/; cat a/x; ls t`, "x\ne\nx\nf"},
		{"cp both ways", `cp data/e/f t/big; cmp t/big data/e/f; cp t/big data/big; cmp t/big data/big && wc -c < data/big`, "588895"},
		{"no links between rooms", `ln data/big t/h 2>&1 | grep -o 'Invalid cross-device link'`, "Invalid cross-device link"},
		{"df", `df --output=fstype,source . | tail -1; stat -f -c %l .`, "fuse.dc dc\n255"},
		{"birth time is asked for and absent", `stat t/f | grep -c Birth; stat -c %w data/big`, "1\n-"},
		{"seek data", `python3 -c '
import os
for f in "t/big", "data/big":
    fd = os.open(f, os.O_RDONLY)
    try: print(os.lseek(fd, 0, os.SEEK_HOLE))
    except OSError as e: print(e.strerror)'`, "588895\nInvalid argument"},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, dir, c.script, c.want) })
	}
}

// together is a file to which every write takes a while, as to any that is replicated.
type together struct {
	memoryFile
	mu      sync.Mutex
	now     int
	most    int
	arrived chan struct{}
}

func (f *together) Parallel() bool { return true }

func (f *together) Open(context.Context, uint32) (synth.Handle, error) {
	return &togetherHandle{memoryHandle{f: &f.memoryFile}, f}, nil
}

type togetherHandle struct {
	memoryHandle
	f *together
}

// Write waits until two writers are here, or a while.
func (h *togetherHandle) Write(_ context.Context, data []byte, _ int64) (int, error) {
	h.f.mu.Lock()
	h.f.now++
	h.f.most = max(h.f.most, h.f.now)
	if h.f.now == 2 {
		close(h.f.arrived)
	}
	h.f.mu.Unlock()
	select {
	case <-h.f.arrived:
	case <-time.After(5 * time.Second):
	}
	h.f.mu.Lock()
	h.f.now--
	h.f.mu.Unlock()
	return len(data), nil
}

func TestWritersOfAParallelFileDoNotWaitForEachOther(t *testing.T) {
	f := &together{memoryFile: memoryFile{key: "t/log", mode: 0o666}, arrived: make(chan struct{})}
	room := newMemory("t")
	room.extra["log"] = f
	dir, _ := mount(t, room)
	expect(t, dir, `echo 1 >> t/log & echo 2 >> t/log & wait; stat -c %i t/log > /tmp/$$.a; stat -c %i t/log | cmp - /tmp/$$.a && echo same; rm /tmp/$$.a`, "same")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.most != 2 {
		t.Errorf("at most %d writers were in at a time, want 2", f.most)
	}
}

func TestNullFSMountsAlone(t *testing.T) {
	dir := t.TempDir()
	unmount, err := nullfs.Mount(dir, time.Minute)
	if err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	expect(t, dir, `mkdir d; echo 1 > d/f; cat d/f; ls -l d | wc -l`, "1\n2")
	if err := os.Remove(dir + "/d/f"); err != nil {
		t.Error(err)
	}
}
