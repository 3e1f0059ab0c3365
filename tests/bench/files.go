package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"missingos/fs/nullfs"
)

// floors: what the machine does without any cluster.
func floors(ctx context.Context, b *bench) error {
	f, err := os.Create(filepath.Join(b.tmp, "fsync"))
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, 4096)
	b.table.rate("floor", "write 4 KiB + fdatasync, disk", 1, measure(ctx, 1, b.time, func(context.Context, int, int) error {
		if _, err := f.WriteAt(page, 0); err != nil {
			return err
		}
		return unix.Fdatasync(int(f.Fd()))
	}))
	return b.onFloors(func(where, dir string) error {
		b.small(ctx, "floor", where, dir, callerCounts[:2])
		return nil
	})
}

// onFloors runs something on a null FUSE mount and on the disk.
func (b *bench) onFloors(run func(where, dir string) error) error {
	null := filepath.Join(b.tmp, "null")
	disk := filepath.Join(b.tmp, "disk")
	for _, dir := range []string{null, disk} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	unmount, err := nullfs.Mount(null, 0)
	if err != nil {
		return err
	}
	err = run("null FUSE", null)
	if uerr := unmount(); err == nil {
		err = uerr
	}
	if err != nil {
		return err
	}
	return run("disk", disk)
}

const largeFile = 256 << 20

// files: small files made, one large file written and read.
func files(ctx context.Context, b *bench) error {
	dir := filepath.Join(b.cluster.Mount(1), "data", fmt.Sprint("bench", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := b.create(ctx, "mount", dir); err != nil {
		return err
	}
	if err := b.onFloors(func(where, dir string) error { return b.create(ctx, where, dir) }); err != nil {
		return err
	}
	if err := b.large("mount", dir); err != nil {
		return err
	}
	return b.onFloors(func(where, dir string) error { return b.large(where, dir) })
}

func (b *bench) create(ctx context.Context, where, dir string) error {
	page := make([]byte, 4096)
	for _, n := range callerCounts[:2] {
		sub := filepath.Join(dir, fmt.Sprint("by", n))
		if err := os.Mkdir(sub, 0o755); err != nil {
			return err
		}
		b.table.rate("data", "create + write 4 KiB + close, "+where, n, measure(ctx, n, b.time, func(_ context.Context, c, i int) error {
			return write(filepath.Join(sub, fmt.Sprintf("%d.%d", c, i)), page)
		}))
	}
	return nil
}

// large writes and reads one file in pieces of 1 MiB; the write ends with fsync.
func (b *bench) large(where, dir string) error {
	path := filepath.Join(dir, "large")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer f.Close()
	piece := make([]byte, 1<<20)
	for i := range piece {
		piece[i] = byte(i * i >> 7)
	}
	start := time.Now()
	for range largeFile / len(piece) {
		if _, err := f.Write(piece); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil && where != "null FUSE" {
		return err
	}
	b.speed("write 256 MiB + fsync, "+where, start)
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	start = time.Now()
	for at := int64(0); at < largeFile; {
		n, err := f.ReadAt(piece, at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	b.speed("read 256 MiB, "+where, start)
	return nil
}

func (b *bench) speed(what string, start time.Time) {
	b.table.figure("data", what, fmt.Sprintf("%.0f MB/s", largeFile/1e6/time.Since(start).Seconds()), "")
}
