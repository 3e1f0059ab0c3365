package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	time   time.Duration // of one round of a measurement
	rounds int
	kills  int
	counts []int // of callers
	keys   int
	stores [2]store // dcd, etcd
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	b := &bench{}
	var bin, only, args, counts, profile string
	flag.DurationVar(&b.time, "time", 1500*time.Millisecond, "how long one round of a measurement takes")
	flag.IntVar(&b.rounds, "rounds", 3, "rounds of each measurement, alternating between the two")
	flag.IntVar(&b.kills, "kills", 5, "how often each leader is killed")
	flag.IntVar(&b.keys, "keys", 200_000, "keys made to measure memory")
	flag.StringVar(&bin, "bin", "../../../bin", "where dcd is")
	flag.StringVar(&counts, "callers", "1,16,128", "how many callers at a time")
	flag.StringVar(&profile, "profile", "", "write a processor profile of this process, the clients, to this file")
	flag.StringVar(&args, "args", "", "more arguments of dcd run")
	flag.StringVar(&only, "only", "", "sections, with commas between: "+strings.Join(names(), ","))
	flag.Parse()
	var want []string
	if only != "" {
		want = strings.Split(only, ",")
	}
	for _, name := range want {
		if !slices.Contains(names(), name) {
			return fmt.Errorf("there is no section %q; there are %s", name, strings.Join(names(), ", "))
		}
	}
	for word := range strings.SplitSeq(counts, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return fmt.Errorf("-callers %s: want numbers with commas between", counts)
		}
		b.counts = append(b.counts, n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	tmp, err := os.MkdirTemp(os.Getenv("DC_BENCH_TMP"), "dc-peers-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if err := os.Setenv("PATH", bin+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	b.stores = [2]store{&missing{args: strings.Fields(args)}, &etcd{}}
	for _, s := range b.stores {
		dir := filepath.Join(tmp, s.name())
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.down(context.WithoutCancel(ctx))) }()
		if err := s.up(ctx, dir); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("three nodes each on one machine of %d processors, %d rounds of %s in turns; load before: %s", runtime.NumCPU(), b.rounds, b.time, load)
	fmt.Printf(format, "", "dcd", "etcd", "ratio", "")
	for _, s := range sections {
		if len(want) > 0 && !slices.Contains(want, s.name) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

const format = "%-34s %14s %14s %8s  %s\n"

// A section is a group of lines.
type section struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

// The last ones hurt: keys stay, leaders are killed.
var sections = []section{
	{"put", puts},
	{"get", gets},
	{"lock", locks},
	{"watch", watches},
	{"memory", memory},
	{"gap", gaps},
}

func names() (out []string) {
	for _, s := range sections {
		out = append(out, s.name)
	}
	return out
}

// rate prints one line of figures of which more is better.
func rate(what string, dcd, etcd float64, note string) {
	fmt.Printf(format, what, fmt.Sprintf("%.0f/s", dcd), fmt.Sprintf("%.0f/s", etcd), fmt.Sprintf("%.2fx", dcd/etcd), note)
}

// cost prints one line of figures of which less is better; the ratio is still that of dcd to etcd.
func cost[T time.Duration | float64](what string, dcd, etcd T, unit, note string) {
	show := func(v T) string {
		if d, ok := any(v).(time.Duration); ok {
			return d.Round(time.Microsecond).String()
		}
		return fmt.Sprintf("%.1f %s", any(v), unit)
	}
	fmt.Printf(format, what, show(dcd), show(etcd), fmt.Sprintf("%.2fx", float64(dcd)/float64(etcd)), note)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
