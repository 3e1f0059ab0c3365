package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

var value = []byte(strings.Repeat("v", 128))

const dir = "bench"

func path(c int) string { return fmt.Sprint(dir, "/k", c) }

// A result is what the rounds of a measurement came to, in each store.
type result struct {
	rates [2][]float64
	each  [2][]time.Duration
	cpu   [2]time.Duration
	ops   [2]int
}

func (r *result) rate(s int) float64 { return middle(r.rates[s], 0.5) }

// note has latencies and processor time for the last column.
func (r *result) note() string {
	f := func(s int) string {
		return fmt.Sprintf("p50 %s p99 %s cpu %s", short(middle(r.each[s], 0.5)), short(middle(r.each[s], 0.99)), short(r.cpu[s]/time.Duration(max(1, r.ops[s]))))
	}
	return f(0) + " | " + f(1)
}

func short(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }

// middle gives a percentile.
func middle[T float64 | time.Duration](v []T, p float64) T {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[min(len(v)-1, int(p*float64(len(v))))]
}

// inTurns measures op with so many callers, in turns.
func (b *bench) inTurns(ctx context.Context, callers int, op func(ctx context.Context, c caller, n int) error) (*result, error) {
	r := &result{}
	var clients [2]caller
	for s, st := range b.stores {
		c, err := st.dial(ctx, false)
		if err != nil {
			return nil, err
		}
		defer c.close()
		if err := c.mkdir(ctx, dir); err != nil {
			return nil, err
		}
		for n := range callers { // makes what is to be read, and connections
			if err := c.put(ctx, path(n), value); err != nil {
				return nil, err
			}
		}
		clients[s] = c
	}
	for i := range b.rounds {
		for turn := range 2 {
			s := (i + turn) % 2
			if err := b.round(ctx, s, callers, r, func(ctx context.Context, n int) error { return op(ctx, clients[s], n) }); err != nil {
				return nil, fmt.Errorf("%s: %w", b.stores[s].name(), err)
			}
		}
	}
	return r, nil
}

// round lets callers repeat op for the time of one round.
func (b *bench) round(ctx context.Context, s, callers int, r *result, op func(ctx context.Context, n int) error) error {
	before, err := measureUsage(b.stores[s].processes())
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start, done := time.Now(), 0
	for n := range callers {
		wg.Go(func() {
			var mine []time.Duration
			var failed error
			for time.Since(start) < b.time && failed == nil {
				begin := time.Now()
				if failed = op(ctx, n); failed == nil {
					mine = append(mine, time.Since(begin))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, failed)
			r.each[s] = append(r.each[s], mine...)
			done += len(mine)
		})
	}
	wg.Wait()
	r.rates[s] = append(r.rates[s], float64(done)/time.Since(start).Seconds())
	if err != nil {
		return err
	}
	after, err := measureUsage(b.stores[s].processes())
	r.cpu[s] += after.cpu - before.cpu
	r.ops[s] += done
	return err
}

func (b *bench) compare(ctx context.Context, what string, op func(ctx context.Context, c caller, n int) error) error {
	for _, n := range b.counts {
		r, err := b.inTurns(ctx, n, op)
		if err != nil {
			return err
		}
		rate(fmt.Sprintf("%s, %d callers", what, n), r.rate(0), r.rate(1), r.note())
	}
	return nil
}

func puts(ctx context.Context, b *bench) error {
	return b.compare(ctx, "put 128 B", func(ctx context.Context, c caller, n int) error { return c.put(ctx, path(n), value) })
}

func gets(ctx context.Context, b *bench) error {
	return b.compare(ctx, "get, linearizable", func(ctx context.Context, c caller, n int) error { return c.get(ctx, path(n)) })
}

func locks(ctx context.Context, b *bench) error {
	return b.compare(ctx, "lock and unlock", func(ctx context.Context, c caller, n int) error { return c.lock(ctx, path(n)) })
}

// watches: from a put to the event of it.
func watches(ctx context.Context, b *bench) error {
	var each [2][]time.Duration
	for i := range b.rounds {
		for turn := range 2 {
			s := (i + turn) % 2
			d, err := b.watch(ctx, b.stores[s])
			if err != nil {
				return fmt.Errorf("%s: %w", b.stores[s].name(), err)
			}
			each[s] = append(each[s], d...)
		}
	}
	note := fmt.Sprintf("%d and %d events", len(each[0]), len(each[1]))
	cost("put to watch, p50", middle(each[0], 0.5), middle(each[1], 0.5), "", note)
	cost("put to watch, p99", middle(each[0], 0.99), middle(each[1], 0.99), "", note)
	return nil
}

func (b *bench) watch(ctx context.Context, s store) (each []time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	c, err := s.dial(ctx, false)
	if err != nil {
		cancel()
		return nil, err
	}
	defer c.close()
	if err := c.mkdir(ctx, dir); err != nil {
		cancel()
		return nil, err
	}
	ready, seen, ended := make(chan struct{}), make(chan time.Time, 16), make(chan error, 1)
	go func() { ended <- c.watch(ctx, dir, ready, func([]byte) { seen <- time.Now() }) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	<-ready
	for start := time.Now(); time.Since(start) < b.time; {
		begin := time.Now()
		if err := c.put(ctx, path(0), value); err != nil {
			return nil, err
		}
		select {
		case at := <-seen:
			each = append(each, at.Sub(begin))
		case <-time.After(5 * time.Second):
			return nil, errors.New("no event in 5 s")
		}
	}
	return each, nil
}

// memory: what keys cost the servers.
func memory(ctx context.Context, b *bench) error {
	var perMillion [2]float64
	for s, st := range b.stores {
		before, after, err := b.fill(ctx, st)
		if err != nil {
			return fmt.Errorf("%s: %w", st.name(), err)
		}
		perMillion[s] = float64(after.anonymous-before.anonymous) / (1 << 20) * 1e6 / float64(b.keys)
	}
	cost("memory a million keys, 3 nodes", perMillion[0], perMillion[1], "MiB", fmt.Sprintf("from %d keys of 128 B", b.keys))
	return nil
}

func (b *bench) fill(ctx context.Context, s store) (before, after usage, err error) {
	c, err := s.dial(ctx, false)
	if err != nil {
		return before, after, err
	}
	defer c.close()
	for i := range 100 {
		if err := c.mkdir(ctx, fmt.Sprint("fill", i)); err != nil {
			return before, after, err
		}
	}
	if before, err = measureUsage(s.processes()); err != nil {
		return before, after, err
	}
	const callers = 64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			for i := n; i < b.keys; i += callers {
				if e := c.put(ctx, fmt.Sprintf("fill%d/%08d", i%100, i), value); e != nil {
					mu.Lock()
					err = e
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	if err = errors.Join(err, sleep(ctx, 3*time.Second)); err != nil {
		return before, after, err
	}
	after, err = measureUsage(s.processes())
	return before, after, err
}

// gaps: how long nobody can write when a leader is killed.
func gaps(ctx context.Context, b *bench) error {
	var all [2][]time.Duration
	for range b.kills {
		for s, st := range b.stores {
			gap, err := b.gap(ctx, st)
			if err != nil {
				return fmt.Errorf("%s: %w", st.name(), err)
			}
			all[s] = append(all[s], gap)
		}
	}
	note := fmt.Sprintf("%d kills each", b.kills)
	cost("write gap after kill -9, p50", middle(all[0], 0.5), middle(all[1], 0.5), "", note)
	cost("write gap after kill -9, worst", slices.Max(all[0]), slices.Max(all[1]), "", note)
	return nil
}

// gap kills the leader under one writer and gives the longest time between two acknowledged writes.
func (b *bench) gap(ctx context.Context, s store) (longest time.Duration, err error) {
	c, err := s.dial(ctx, true)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.mkdir(ctx, dir); err != nil {
		return 0, err
	}
	leader, err := s.leader(ctx)
	if err != nil {
		return 0, err
	}
	work, stop := context.WithCancel(ctx)
	done, acked := make(chan struct{}), make(chan struct{}, 1)
	go func() {
		defer close(done)
		for last := time.Now(); work.Err() == nil; {
			op, cancel := context.WithTimeout(work, time.Second)
			err := c.put(op, path(0), value)
			cancel()
			if err == nil {
				longest, last = max(longest, time.Since(last)), time.Now()
				select {
				case acked <- struct{}{}:
				default:
				}
			}
		}
	}()
	err = errors.Join(sleep(ctx, 500*time.Millisecond), s.kill(ctx, leader), sleep(ctx, 200*time.Millisecond))
	select { // one that was acknowledged before the kill
	case <-acked:
	default:
	}
	select {
	case <-acked:
	case <-time.After(30 * time.Second):
		err = errors.Join(err, errors.New("no write in 30 s after the kill"))
	case <-ctx.Done():
	}
	stop()
	<-done
	return longest, errors.Join(err, s.start(ctx, leader), sleep(ctx, 2*time.Second))
}
