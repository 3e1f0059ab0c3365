package datafs_test

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"missingos/fs/datafs"
	"missingos/srv/data/datatest"
	"missingos/srv/dc"
)

// fenced opens a file and conditions what is written through it, and through what else of it this process has open in that mount.
func fenced(t *testing.T, path string, flags int, fence string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	check(t, unix.Setxattr(path, "user.dc.fence", []byte(fence), 0))
	return f
}

func wantStale(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, unix.ESTALE) {
		t.Errorf("%s: %v, want ESTALE", what, err)
	}
}

// TestAnOlderHoldersChangesAreRefused has node a hold the lock first, and node b after it.
func TestAnOlderHoldersChangesAreRefused(t *testing.T) {
	if os.Getenv(clusterMounts) != "" {
		t.Skip("a running cluster asks its lock store")
	}
	for _, late := range []struct {
		name  string
		flags int
		do    func(f *os.File) error
	}{
		{"small write", os.O_RDWR, func(f *os.File) error { _, err := f.WriteAt([]byte("late"), 0); return errors.Join(err, f.Sync()) }},
		{"append", os.O_WRONLY | os.O_APPEND, func(f *os.File) error { _, err := f.WriteString("late"); return errors.Join(err, f.Sync()) }},
		{"large write", os.O_RDWR, func(f *os.File) error {
			_, err := f.WriteAt([]byte(pattern(9<<20)), 0)
			return errors.Join(err, f.Sync())
		}},
		{"close", os.O_RDWR, func(f *os.File) error { _, err := f.WriteAt([]byte("late"), 0); return errors.Join(err, f.Close()) }},
		{"truncate", os.O_RDWR, func(f *os.File) error { return f.Truncate(1) }},
		{"extend", os.O_RDWR, func(f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 1000) }},
		{"punch", os.O_RDWR, func(f *os.File) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 2)
		}},
	} {
		t.Run(late.name, func(t *testing.T) {
			a, b := two(t)
			write(t, a+"/f", "")
			old := fenced(t, a+"/f", late.flags, "5@l")
			_, err := old.WriteString("old")
			check(t, errors.Join(err, old.Sync()))
			wantContent(t, b+"/f", "old")
			next := fenced(t, b+"/f", os.O_RDWR, "7@l")
			_, err = next.WriteAt([]byte("new"), 0)
			check(t, errors.Join(err, next.Sync()))
			wantStale(t, late.name, late.do(old))
			wantContent(t, a+"/f", "new")
			wantContent(t, b+"/f", "new")
			_, err = next.WriteAt([]byte("NEW"), 0)
			check(t, errors.Join(err, next.Sync()))
			write(t, a+"/f", "without a condition")
			wantContent(t, b+"/f", "without a condition")
		})
	}
}

// TestARefusedWriteIsToldToItsWriterAlone has a descriptor without a condition on the same node, before and after.
func TestARefusedWriteIsToldToItsWriterAlone(t *testing.T) {
	if os.Getenv(clusterMounts) != "" {
		t.Skip("a running cluster asks its lock store")
	}
	for _, other := range []struct {
		name string
		do   func(f *os.File) error
	}{
		{"write", func(f *os.File) error { _, err := f.WriteAt([]byte("mine"), 4); return errors.Join(err, f.Sync()) }},
		{"truncate", func(f *os.File) error { return f.Truncate(8) }},
		{"extend", func(f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 8) }},
		{"sync", func(f *os.File) error { return f.Sync() }},
		{"read", func(f *os.File) error { _, err := f.ReadAt(make([]byte, 4), 0); return err }},
		{"seek", func(f *os.File) error { _, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); return err }},
		{"stat", func(f *os.File) error { _, err := f.Stat(); return err }},
		{"close", func(f *os.File) error { return f.Close() }},
	} {
		t.Run(other.name, func(t *testing.T) {
			a, b := two(t)
			write(t, a+"/f", "0123")
			old := fenced(t, a+"/f", os.O_RDWR, "5@l")
			next := fenced(t, b+"/f", os.O_RDWR, "7@l")
			_, err := next.WriteAt([]byte("new!"), 0)
			check(t, errors.Join(err, next.Sync()))
			free, err := os.OpenFile(a+"/f", os.O_RDWR, 0) // after the condition was set
			check(t, err)
			defer free.Close()
			if _, err := old.WriteAt([]byte("late"), 0); err != nil {
				t.Fatal(err)
			}
			if err := other.do(free); err != nil {
				t.Errorf("of who has no condition: %v", err)
			}
			wantStale(t, "sync of the one who has", old.Sync())
			got, err := os.ReadFile(b + "/f")
			if check(t, err); string(got[:4]) != "new!" {
				t.Errorf("the file holds %q", got)
			}
		})
	}
}

// What tells of a refusal may be a close of a duplicate that nobody looks at, as a shell's after echo >&7: it is told again.
func TestARefusedDescriptorStaysRefused(t *testing.T) {
	if os.Getenv(clusterMounts) != "" {
		t.Skip("a running cluster asks its lock store")
	}
	a, b := two(t)
	write(t, a+"/f", "")
	old := fenced(t, a+"/f", os.O_RDWR, "5@l")
	next := fenced(t, b+"/f", os.O_RDWR, "7@l")
	_, err := next.WriteAt([]byte("new"), 0)
	check(t, errors.Join(err, next.Sync()))
	if _, err := old.WriteAt([]byte("late"), 0); err != nil {
		t.Fatal(err)
	}
	twin, err := unix.Dup(int(old.Fd()))
	check(t, err)
	_ = unix.Close(twin)
	wantStale(t, "sync", old.Sync())
	wantStale(t, "sync again", old.Sync())
	_, err = old.WriteAt([]byte("later"), 0)
	wantStale(t, "write", err)
	check(t, unix.Setxattr(a+"/f", "user.dc.fence", []byte("8@l"), 0)) // it has taken the lock again
	_, err = old.WriteAt([]byte("now"), 0)
	check(t, errors.Join(err, old.Sync()))
	wantContent(t, b+"/f", "now")
}

// syncs counts what is asked to become durable.
type syncs struct {
	datafs.Service
	blocks atomic.Int64
}

func (s *syncs) SyncBlocks(ctx context.Context, placed [][]dc.NodeID) error {
	s.blocks.Add(int64(len(placed)))
	return s.Service.SyncBlocks(ctx, placed)
}

func TestFsyncIsDoneWhenAnothersWriteIsRefused(t *testing.T) {
	c := datatest.New(t, 3)
	s := &syncs{Service: c.Client(1)}
	a, b := mountOf(t, s, 1), mount(t, c, 2)
	write(t, a+"/f", "")
	old := fenced(t, a+"/f", os.O_RDWR, "5@l")
	next := fenced(t, b+"/f", os.O_RDWR, "7@l")
	_, err := next.WriteAt([]byte("new"), 0)
	check(t, errors.Join(err, next.Sync()))
	free, err := os.OpenFile(a+"/f", os.O_RDWR, 0)
	check(t, err)
	defer free.Close()
	_, err = free.WriteAt([]byte(pattern(1<<20)), 0)
	check(t, err)
	if _, err := old.WriteAt([]byte("late"), 0); err != nil { // publishes what free wrote
		t.Fatal(err)
	}
	before := s.blocks.Load()
	check(t, free.Sync())
	if s.blocks.Load() == before {
		t.Error("fsync has answered without making the blocks durable")
	}
	wantStale(t, "sync of the one whose write was refused", old.Sync())
	wantContent(t, b+"/f", pattern(1<<20))
}

// TestWithoutItsFenceADescriptorWritesAgain also shows what is refused at once.
func TestWithoutItsFenceADescriptorWritesAgain(t *testing.T) {
	a, _ := two(t)
	write(t, a+"/f", "")
	for _, bad := range []string{"5", "@l", "0@l", "x@l", "5@", "5@/"} {
		if err := unix.Setxattr(a+"/f", "user.dc.fence", []byte(bad), 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v, want EINVAL", bad, err)
		}
	}
	if err := unix.Setxattr(a+"/f", "user.dc.fence", []byte("5@l"), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("without a descriptor: %v, want EINVAL", err)
	}
	if os.Getenv(clusterMounts) != "" {
		t.Skip("a running cluster asks its lock store")
	}
	first := fenced(t, a+"/f", os.O_RDWR, "7@l")
	_, err := first.WriteString("7")
	check(t, errors.Join(err, first.Sync()))
	check(t, unix.Setxattr(a+"/f", "user.dc.fence", []byte("5@l"), 0))
	_, err = first.WriteString("5")
	wantStale(t, "under an older token", errors.Join(err, first.Sync()))
	check(t, unix.Removexattr(a+"/f", "user.dc.fence"))
	_, err = first.WriteAt([]byte("free"), 0)
	check(t, errors.Join(err, first.Sync()))
	wantContent(t, a+"/f", "free")
}
