package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// result is what a measurement came to.
type result struct {
	ops    int
	errors int
	took   time.Duration
	each   []time.Duration // sorted
	err    error           // one of the errors
}

func (r result) perSecond() float64 { return float64(r.ops) / r.took.Seconds() }

func (r result) percentile(p float64) time.Duration {
	if len(r.each) == 0 {
		return 0
	}
	return r.each[min(len(r.each)-1, int(p*float64(len(r.each))))]
}

// measure lets callers repeat op for d. op gets its caller's number and how often that has called before.
func measure(ctx context.Context, callers int, d time.Duration, op func(ctx context.Context, caller, i int) error) result {
	var mu sync.Mutex
	var total result
	start := time.Now()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			var mine result
			for i := 0; time.Since(start) < d && ctx.Err() == nil; i++ {
				begin := time.Now()
				err := op(ctx, c, i)
				if err != nil {
					mine.errors, mine.err = mine.errors+1, err
					continue
				}
				mine.ops++
				mine.each = append(mine.each, time.Since(begin))
			}
			mu.Lock()
			defer mu.Unlock()
			total.ops += mine.ops
			total.errors += mine.errors
			total.each = append(total.each, mine.each...)
			if mine.err != nil {
				total.err = mine.err
			}
		})
	}
	wg.Wait()
	total.took = time.Since(start)
	slices.Sort(total.each)
	return total
}

// table prints lines as they are measured.
type table struct{ section string }

const format = "%-9s %-39s %7s %12s %10s %10s  %s\n"

func (t *table) head() {
	fmt.Printf(format, "", "what", "callers", "a second", "median", "p99", "")
}

func (t *table) title(section string) string {
	if section == t.section {
		return ""
	}
	t.section = section
	return section
}

// rate prints operations a second.
func (t *table) rate(section, what string, callers int, r result) {
	note := ""
	if r.errors > 0 {
		note = fmt.Sprintf("%d errors, such as: %v", r.errors, r.err)
	}
	fmt.Printf(format, t.title(section), what, fmt.Sprint(callers), fmt.Sprintf("%.0f", r.perSecond()), short(r.percentile(0.5)), short(r.percentile(0.99)), note)
}

// figure prints one number with its unit.
func (t *table) figure(section, what, figure, note string) {
	fmt.Printf(format, t.title(section), what, "", figure, "", "", note)
}

func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(100 * time.Nanosecond).String()
}
