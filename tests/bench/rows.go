package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/client"
	"missingos/srv/dc"
)

var callerCounts = []int{1, 16, 128}

var value = []byte(strings.Repeat("v", 127) + "\n")

// write replaces a file's content, read reads it: what `echo > f` and `cat f` do.
func write(path string, data []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, data)
	unix.Close(fd)
	return err
}

func read(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err == nil && n != len(value) {
		err = fmt.Errorf("%s: read %d bytes, want %d", path, n, len(value))
	}
	return err
}

// small writes and reads 128 bytes of a file a caller in dir.
func (b *bench) small(ctx context.Context, section, where, dir string, counts []int) {
	path := func(caller int) string { return filepath.Join(dir, fmt.Sprint("k", caller)) }
	for _, n := range counts {
		b.table.rate(section, "put 128 B, "+where, n, measure(ctx, n, b.time, func(_ context.Context, c, _ int) error { return write(path(c), value) }))
	}
	for _, n := range counts {
		b.table.rate(section, "get 128 B, "+where, n, measure(ctx, n, b.time, func(_ context.Context, c, _ int) error { return read(path(c)) }))
	}
}

// kvRows: puts and gets of 128 bytes, and bulk.
func kvRows(ctx context.Context, b *bench) error {
	c, r, err := b.dial(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	kv := client.NewKV(c, client.NewMeta(c))
	name := fmt.Sprint("bench", os.Getpid())
	table, err := kv.CreateTable(ctx, name, 0o755)
	if err != nil {
		return err
	}
	defer func() { _ = kv.DropTable(context.WithoutCancel(ctx), table, false) }()
	key := func(caller int) string { return fmt.Sprint("k", caller) }
	for _, n := range callerCounts {
		b.table.rate("kv", "put 128 B, client", n, measure(ctx, n, b.time, func(ctx context.Context, c, _ int) error {
			_, err := kv.Put(ctx, table, key(c), client.KVPut{Data: value, Mode: 0o644})
			return err
		}))
	}
	for _, n := range callerCounts {
		b.table.rate("kv", "get 128 B, client", n, measure(ctx, n, b.time, func(ctx context.Context, c, _ int) error {
			_, _, err := kv.Get(ctx, table, key(c))
			return err
		}))
	}
	b.small(ctx, "kv", "mount", filepath.Join(b.cluster.Mount(1), "kv", name), callerCounts)
	return b.bulk(ctx, kv, table)
}

// bulk loads rows of 100 bytes and scans them.
func (b *bench) bulk(ctx context.Context, kv *client.KV, table client.Descriptor) error {
	const perCall, callers = 1000, 4
	r := measure(ctx, callers, b.time, func(ctx context.Context, c, i int) error {
		rows := make([]client.KVPair, perCall)
		for j := range rows {
			rows[j] = client.KVPair{Key: fmt.Sprintf("bulk/%d/%010d", c, i*perCall+j), Value: value[:80]}
		}
		return kv.Load(ctx, table, rows)
	})
	note := ""
	if r.err != nil {
		note = r.err.Error()
	}
	b.table.figure("kv", "load rows of 100 B, client", fmt.Sprintf("%.0f/s", r.perSecond()*perCall), note)
	rows, start := 0, time.Now()
	err := kv.Scan(ctx, table, client.KVScan{Prefix: "bulk/"}, func(client.KVPair) error { rows++; return nil })
	b.table.figure("kv", "scan rows of 100 B, client", fmt.Sprintf("%.0f/s", float64(rows)/time.Since(start).Seconds()), fmt.Sprintf("%d rows", rows))
	return err
}

// lockFiles: puts and gets of files, and locks.
func lockFiles(ctx context.Context, b *bench) error {
	c, r, err := b.dial(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	lock := client.NewLock(c)
	defer func() { _ = lock.Close(context.WithoutCancel(ctx)) }()
	name := fmt.Sprint("bench", os.Getpid())
	dir := filepath.Join(b.cluster.Mount(1), "lock", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := func(caller int) string { return fmt.Sprint(name, "/k", caller) }
	for i := range callerCounts[len(callerCounts)-1] {
		if _, err := lock.Create(ctx, path(i), false, 0o644); err != nil {
			return err
		}
	}
	for _, n := range callerCounts {
		b.table.rate("lock", "put 128 B, client", n, measure(ctx, n, b.time, func(ctx context.Context, c, _ int) error {
			_, err := lock.Put(ctx, path(c), client.LockPut{Value: value})
			return err
		}))
	}
	for _, n := range callerCounts {
		b.table.rate("lock", "get 128 B, client", n, measure(ctx, n, b.time, func(ctx context.Context, c, _ int) error {
			_, err := lock.Read(ctx, path(c))
			return err
		}))
	}
	b.small(ctx, "lock", "mount", dir, callerCounts)
	for _, n := range callerCounts[:2] {
		b.table.rate("lock", "flock + unlock, a file each, mount", n, measure(ctx, n, b.time, func(_ context.Context, c, _ int) error {
			return flock(filepath.Join(dir, fmt.Sprint("k", c)))
		}))
	}
	b.table.rate("lock", "flock + unlock, one file, mount", 16, measure(ctx, 16, b.time, func(context.Context, int, int) error {
		return flock(filepath.Join(dir, "k0"))
	}))
	return nil
}

func flock(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return err
	}
	return unix.Flock(fd, unix.LOCK_UN)
}

// topics: messages of 100 bytes, one and a hundred a publish.
func topics(ctx context.Context, b *bench) error {
	c, r, err := b.dial(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	t := client.NewTopics(c, client.NewMeta(c))
	d, err := t.Create(ctx, fmt.Sprint("bench", os.Getpid()), 0o755)
	if err != nil {
		return err
	}
	defer func() { _ = t.Drop(context.WithoutCancel(ctx), d, false) }()
	line := []byte(strings.Repeat("m", 99) + "\n")
	for _, n := range callerCounts {
		b.table.rate("topic", "publish 100 B, client", n, measure(ctx, n, b.time, func(ctx context.Context, _, _ int) error {
			_, _, err := t.Publish(ctx, d, line)
			return err
		}))
	}
	many := []byte(strings.Repeat(string(line), 100))
	res := measure(ctx, 16, b.time, func(ctx context.Context, _, _ int) error {
		_, _, err := t.Publish(ctx, d, many)
		return err
	})
	b.table.figure("topic", "publish 100 B, 100 a call, client", fmt.Sprintf("%.0f/s", 100*res.perSecond()), "16 callers")
	log := filepath.Join(b.cluster.Mount(1), "topics", d.Name, "log")
	for _, n := range callerCounts[:2] {
		b.table.rate("topic", "echo >> log, mount", n, measure(ctx, n, b.time, func(context.Context, int, int) error { return appendLine(log, line) }))
	}
	return nil
}

func appendLine(path string, line []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, line)
	if err == nil && n < len(line) {
		err = dc.Errorf(dc.Internal, "append", path, "%d of %d bytes written", n, len(line))
	}
	return err
}
