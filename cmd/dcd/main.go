// Command dcd is the daemon that makes a machine a node of the cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"missingos/scheduler/driver"
	"missingos/srv/dc"
	"missingos/srv/node"
)

const usage = `dcd makes this machine a node of a Missing OS cluster.

usage:
  dcd init --dir D [--listen HOST:PORT] [--name NAME] [--mount PATH]            the first node of a new cluster
  dcd join --dir D --token T [--listen HOST:PORT] [--name NAME] [--mount PATH]  a further node; the token is from "dcctl node token"
  dcd run  --dir D [--listen HOST:PORT] [--mount PATH | --no-mount] [--metrics HOST:PORT] [--reserve SIZE] [--dead-after TIME] [--compare-every TIME] [--session-ttl TIME]
           [--label KEY=VALUE]... [--snapshot-rate SIZE] [--repair-rate SIZE] [--scrub-every TIME] [--store-size SIZE]
  dcd version

Each flag may also be given in the environment: --listen as DCD_LISTEN, and so on. "dcd run" can be started again at any time, by a service
manager for example; SIGTERM hands over what the node leads, unmounts and ends; SIGQUIT prints all goroutines and ends.

example:
  first#   dcd init --dir /var/lib/dc --listen 10.0.0.1:7770 && dcd run --dir /var/lib/dc
  first#   dcctl node token
  second#  dcd join --dir /var/lib/dc --listen 10.0.0.2:7770 --token dct1.... && dcd run --dir /var/lib/dc

exit status: 0 done, 1 failed, 2 usage
`

const defaultDir = "/var/lib/dc"

const joinTimeout = 60 * time.Second

func main() {
	if len(os.Args) > 1 && os.Args[1] == "shim" { // a task's own process, started by the daemon: nothing else may run in it before
		os.Exit(driver.ShimMain(os.Args[2:]))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch verb, rest := args[0], args[1:]; verb {
	case "init":
		err = initNode(rest, stdout, stderr)
	case "join":
		err = join(ctx, rest, stdout, stderr)
	case "run":
		err = serve(ctx, rest, stderr)
	case "version", "--version":
		fmt.Fprintf(stdout, "dcd %s (%s)\n", node.Version, node.Commit)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
	default:
		err = usageError{fmt.Errorf("unknown command %q", verb)}
	}
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "dcd: %v\n(\"dcd help\" shows how)\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "dcd: %v\n", err)
	return 1
}

type usageError struct{ error }

// flags are what all verbs share.
type flags struct {
	*flag.FlagSet
	dir, listen, name, mount, token string
}

func newFlags(verb string, stderr io.Writer) *flags {
	f := &flags{FlagSet: flag.NewFlagSet("dcd "+verb, flag.ContinueOnError)}
	f.SetOutput(stderr)
	f.Usage = func() { fmt.Fprint(stderr, usage) }
	f.StringVar(&f.dir, "dir", defaultDir, "the node's directory")
	f.StringVar(&f.listen, "listen", "", "host:port for other nodes")
	f.StringVar(&f.mount, "mount", "", "where to mount the tree")
	return f
}

// parse takes flags over environment.
func (f *flags) parse(args []string) error {
	if err := f.FlagSet.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	if f.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	var err error
	f.VisitAll(func(fl *flag.Flag) {
		key := "DCD_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		if v, ok := os.LookupEnv(key); ok && !given[fl.Name] && err == nil {
			if serr := f.Set(fl.Name, v); serr != nil {
				err = usageError{fmt.Errorf("%s: %w", key, serr)}
			}
		}
	})
	return err
}

func initNode(args []string, stdout, stderr io.Writer) error {
	f := newFlags("init", stderr)
	f.StringVar(&f.name, "name", "", "the node's name; default: this machine's")
	if err := f.parse(args); err != nil {
		return err
	}
	id, err := node.Init(f.dir, f.listen, f.name, f.mount)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "made cluster %s with node %s (%s); start it: dcd run --dir %s\n", id.Cluster, id.Node, id.Name, f.dir)
	fmt.Fprintln(stdout, id.Node)
	return nil
}

func join(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := newFlags("join", stderr)
	f.StringVar(&f.name, "name", "", "the node's name; default: this machine's")
	f.StringVar(&f.token, "token", "", "a token that \"dcctl node token\" has made")
	if err := f.parse(args); err != nil {
		return err
	}
	if f.token == "" {
		return usageError{errors.New("no --token: make one with \"dcctl node token\" on a node of the cluster")}
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	id, err := node.Join(ctx, f.dir, f.token, f.listen, f.name, f.mount)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "node %s (%s) of cluster %s; start it: dcd run --dir %s\n", id.Node, id.Name, id.Cluster, f.dir)
	fmt.Fprintln(stdout, id.Node)
	return nil
}

func serve(ctx context.Context, args []string, stderr io.Writer) error {
	f := newFlags("run", stderr)
	noMount := f.Bool("no-mount", false, "run without a tree")
	metrics := f.String("metrics", "", "host:port for Prometheus metrics")
	reserve := f.String("reserve", "", "bytes of the disk to leave free, such as 500M; default: 5% of it")
	deadAfter := f.Duration("dead-after", 0, "how long a silent node keeps its replicas; default 5m")
	compareEvery := f.Duration("compare-every", 0, "how often the replicas of a group that was written to are compared; default 1h, negative: never")
	sessionTTL := f.Duration("session-ttl", 0, "how long this node's locks outlive its silence, 3s to 5m; default 10s")
	rate := f.String("snapshot-rate", "", "bytes a second that state sent to replicas far behind may take, and as many received; default: 32M")
	repair := f.String("repair-rate", "", "bytes a second that copies of blocks may take that are made or moved for safety or balance; default: 32M")
	scrubEvery := f.Duration("scrub-every", 0, "how long reading all blocks takes, to find bad ones; default 168h, negative: never")
	storeSize := f.String("store-size", "", "bytes that blocks of files may take here; default: what the disk has above its reserve")
	labels := map[string]string{}
	f.Func("label", "KEY=VALUE[,KEY=VALUE...], may be given again: rack and zone say what fails together", func(s string) error { return parseLabels(labels, s) })
	verbose := f.Bool("verbose", false, "log every request")
	if err := f.parse(args); err != nil {
		return err
	}
	reserveBytes, err := parseSize("--reserve", *reserve)
	if err != nil {
		return usageError{err}
	}
	snapshotRate, err := parseSize("--snapshot-rate", *rate)
	if err != nil {
		return usageError{err}
	}
	repairRate, err := parseSize("--repair-rate", *repair)
	if err != nil {
		return usageError{err}
	}
	storeBytes, err := parseSize("--store-size", *storeSize)
	if err != nil {
		return usageError{err}
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	limitMemory()
	return node.Run(ctx, node.Config{
		Dir: f.dir, Listen: f.listen, Mount: f.mount, NoMount: *noMount, Metrics: *metrics, ReserveBytes: reserveBytes, DeadAfter: *deadAfter, CompareEvery: *compareEvery, Labels: labels,
		SnapshotRate: int64(snapshotRate), RepairRate: int64(repairRate), ScrubEvery: *scrubEvery, StoreBytes: int64(storeBytes), SessionTTL: *sessionTTL,
		Shim: []string{"/proc/self/exe", "shim"},
		Log:  slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})),
	})
}

// parseLabels adds to labels. An empty value removes the label from the node's record.
func parseLabels(labels map[string]string, s string) error {
	for _, pair := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return fmt.Errorf("%q is not KEY=VALUE", pair)
		}
		labels[k] = v
	}
	return nil
}

// parseSize reads a flag's number of bytes: 4096, 64K, 500M, 2G.
func parseSize(flag, s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	unit, digits := uint64(1), strings.TrimSuffix(s, "B")
	for suffix, u := range map[string]uint64{"K": dc.KiB, "M": dc.MiB, "G": dc.GiB, "T": 1024 * dc.GiB} {
		if rest, ok := strings.CutSuffix(digits, suffix); ok {
			unit, digits = u, rest
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("%s %s: want a size such as 500M or 2G", flag, s)
	}
	return n * unit, nil
}
