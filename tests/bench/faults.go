package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"missingos/srv/client"
)

// jobs: from writing a spec to the first byte of the task's output, and to the end of the job.
func jobs(ctx context.Context, b *bench) error {
	dir := filepath.Join(b.cluster.Mount(1), "jobs")
	name := func(i int) string { return fmt.Sprintf("bench%dx%d", os.Getpid(), i) }
	var started, ended result
	const rounds = 10
	for i := range rounds {
		spec := fmt.Sprintf("#!/bin/sh\n#dc name=%s cpu=0.1 memory=16M\ndate +%%s%%N\n", name(i))
		begin := time.Now()
		if err := write(filepath.Join(dir, "new"), []byte(spec)); err != nil {
			return err
		}
		out, err := os.ReadFile(filepath.Join(dir, name(i), "wait"))
		if err != nil {
			return err
		}
		ended.each = append(ended.each, time.Since(begin))
		if !strings.HasPrefix(string(out), "succeeded") {
			return fmt.Errorf("job %s: %s", name(i), out)
		}
		printed, err := os.ReadFile(filepath.Join(dir, name(i), "tasks", "0", "stdout"))
		if err != nil {
			return err
		}
		var ns int64
		if _, err := fmt.Sscan(string(printed), &ns); err != nil {
			return fmt.Errorf("job %s printed %q: %w", name(i), printed, err)
		}
		started.each = append(started.each, time.Unix(0, ns).Sub(begin))
		_ = os.Remove(filepath.Join(dir, name(i)))
	}
	note := fmt.Sprintf("%d jobs, one after the other", rounds)
	b.table.figure("job", "spec written to task running", short(middle(started.each)), note)
	b.table.figure("job", "spec written to job ended", short(middle(ended.each)), note)
	return nil
}

func middle(d []time.Duration) time.Duration {
	r := result{each: append([]time.Duration(nil), d...)}
	slices.Sort(r.each)
	return r.percentile(0.5)
}

// failover: kill -9 of the leader of kv, and how long a client that writes all the time waits. Nothing acknowledged may be lost.
func failover(ctx context.Context, b *bench) error {
	c, r, err := b.dial(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	kv := client.NewKV(c, client.NewMeta(c))
	table, err := kv.CreateTable(ctx, fmt.Sprint("failover", os.Getpid()), 0o755)
	if err != nil {
		return err
	}
	defer func() { _ = kv.DropTable(context.WithoutCancel(ctx), table, false) }()
	const rounds = 3
	var gaps []time.Duration
	lost := 0
	for i := range rounds {
		gap, missing, err := b.kill(ctx, kv, table, i)
		if err != nil {
			return err
		}
		gaps, lost = append(gaps, gap), lost+missing
	}
	slices.Sort(gaps)
	b.table.figure("failover", "kill -9 of the leader to next write", short(gaps[len(gaps)/2]), fmt.Sprintf("%d rounds, longest %s; %d acknowledged writes lost", rounds, short(gaps[len(gaps)-1]), lost))
	if lost > 0 {
		return errors.New("acknowledged writes were lost")
	}
	return nil
}

// kill does one round: it gives the longest time between two acknowledged writes around the kill, and how many of them are gone afterwards.
func (b *bench) kill(ctx context.Context, kv *client.KV, table client.Descriptor, round int) (gap time.Duration, missing int, err error) {
	leader, err := b.leader(ctx, "kv/0")
	if err != nil {
		return 0, 0, err
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	key := func(n int) string { return fmt.Sprintf("%d/%08d", round, n) }
	done := make(chan int)
	var longest time.Duration
	go func() { // one writer; it counts what was acknowledged
		n, last := 0, time.Now()
		for work.Err() == nil {
			op, cancel := context.WithTimeout(ctx, 20*time.Second)
			_, err := kv.Put(op, table, key(n), client.KVPut{Data: value})
			cancel()
			if err != nil {
				break
			}
			n++
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		done <- n
	}()
	err = errors.Join(sleep(ctx, time.Second), b.cluster.Kill(ctx, leader), sleep(ctx, 6*time.Second), b.cluster.Start(ctx, leader), sleep(ctx, 2*time.Second))
	stop()
	acknowledged := <-done
	if err != nil {
		return 0, 0, err
	}
	found := 0
	err = kv.Scan(ctx, table, client.KVScan{From: key(0), To: key(acknowledged), KeysOnly: true}, func(client.KVPair) error { found++; return nil })
	return longest, acknowledged - found, err
}
