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
	"slices"
	"strings"
	"syscall"
	"time"

	"missingos/ctl"
	"missingos/ctl/local"
)

const nodes = 3

// bench is one run.
type bench struct {
	time    time.Duration // of one measurement
	only    []string
	tmp     string // on the disk that the cluster is on
	cluster *local.Cluster
	table   table
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	b := &bench{}
	dir, dcd, only := "", "", ""
	flag.DurationVar(&b.time, "time", 2*time.Second, "how long one measurement takes")
	flag.StringVar(&dir, "dir", "", "use the local cluster of this directory, which must run, instead of a fresh one")
	flag.StringVar(&dcd, "bin", "bin", "where dcd is")
	flag.StringVar(&only, "only", "", "sections, with commas between: "+strings.Join(sectionNames(), ","))
	flag.Parse()
	if only != "" {
		b.only = strings.Split(only, ",")
	}
	for _, name := range b.only {
		if !slices.Contains(sectionNames(), name) {
			return fmt.Errorf("there is no section %q; there are %s", name, strings.Join(sectionNames(), ", "))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if b.tmp, err = os.MkdirTemp(os.Getenv("DC_BENCH_TMP"), "dc-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.tmp)) }()
	if dcd, err = filepath.Abs(dcd); err != nil {
		return err
	}
	if err := os.Setenv("PATH", dcd+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	if err := b.up(ctx, dir); err != nil {
		return err
	}
	if dir == "" {
		defer func() { err = errors.Join(err, b.cluster.Down(context.WithoutCancel(ctx))) }()
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%d nodes on one machine of %d processors; load before: %s", b.cluster.Nodes(), runtime.NumCPU(), load)
	b.table.head()
	for _, s := range sections {
		if len(b.only) > 0 && !slices.Contains(b.only, s.name) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// up starts a fresh cluster, or opens the one at dir.
func (b *bench) up(ctx context.Context, dir string) (err error) {
	env := &ctl.Env{Stderr: os.Stderr, Dir: dir}
	n := 0
	if dir == "" {
		env.Dir, env.Mount, n = filepath.Join(b.tmp, "c"), filepath.Join(b.tmp, "c", "dc"), nodes
	}
	if b.cluster, err = ctl.LocalCluster(env, n); err != nil || dir != "" {
		return err
	}
	return b.cluster.Up(ctx)
}

// A section is a group of lines of the table. The floors come first; what the idle cluster costs is measured before anything else loads it.
type section struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var sections = []section{
	{"idle", idle},
	{"floor", floors},
	{"kv", kvRows},
	{"lock", lockFiles},
	{"topic", topics},
	{"data", files},
	{"job", jobs},
	{"failover", failover},
}

func sectionNames() []string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}
