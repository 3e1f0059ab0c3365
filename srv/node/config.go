package node

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"missingos/srv/dc"
	"missingos/srv/pki"
)

// Version and Commit are set by the linker.
var (
	Version = "dev"
	Commit  = "unknown"
)

// DefaultListen is where a node listens unless told otherwise.
const DefaultListen = ":7770"

// DefaultMount is where root mounts the tree.
const DefaultMount = "/dc"

// Config is how a node runs. Dir is needed; what is zero comes from the node's own configuration file, written by Init and Join.
type Config struct {
	Dir    string
	Listen string // host:port of the port between nodes; port 0 takes a free one
	Mount  string // where to mount the tree
	// NoMount runs the node without a tree of its own.
	NoMount bool
	// Metrics is a host:port for Prometheus metrics over HTTP; empty for none.
	Metrics string
	// ReserveBytes of the file system that holds Dir stay free: writes are refused before. 0 means 5% of it.
	ReserveBytes uint64
	// SnapshotRate is how many bytes a second the states may take that this node sends to replicas that are far behind, and as many those that it
	// receives. 0 means 32 MiB; less than 0 is no limit.
	SnapshotRate int64
	// RepairRate is how many bytes a second copies of blocks may take that are made or moved for the sake of safety or balance, in the whole cluster: what the node
	// that leads the data group was told counts. 0 means 32 MiB; less than 0 is no limit.
	RepairRate int64
	// ScrubEvery is how long reading all blocks of this node takes, to find bad ones. 0 means a week, less than 0 never.
	ScrubEvery time.Duration
	// StoreBytes bounds what blocks of files may take here. 0 is what the disk has above its reserve.
	StoreBytes int64
	// DeadAfter is how long a node may be silent before its replicas are placed elsewhere: what the node that leads meta was told counts. 0 means 5 minutes.
	DeadAfter time.Duration
	// CompareEvery is how often the replicas of a group that was written to are compared, by its leader. 0 means an hour, less than 0 never.
	CompareEvery time.Duration
	// SessionTTL is how long this node's locks and ephemeral files outlive its silence, from dc.MinSessionTTL to dc.MaxSessionTTL. 0 means
	// dc.SessionTTL. A change holds from the next session on.
	SessionTTL time.Duration
	// Labels are set on the node's record when it starts; an empty value removes one. Others, set through the tree, stay.
	Labels map[string]string
	// Shim is the command of a program that runs driver.ShimMain, for the tasks of jobs. Without it this node runs no tasks.
	Shim []string
	// Listener, if set, is used in place of Listen (tests).
	Listener net.Listener
	// Dial, if set, opens connections to other nodes in place of TCP (tests cut them).
	Dial func(network, address string) (net.Conn, error)
	// Fatal is told of failures after which the process must not go on. It should not return. Default: log, and exit with status 1.
	Fatal func(error)
	// StopTimeout bounds a clean end. 0 means 20 seconds.
	StopTimeout time.Duration
	Log         *slog.Logger
}

// Validate reports everything that is wrong with c.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, dc.Errorf(dc.Invalid, "configure", "", "no directory (--dir)"))
	}
	for _, a := range []struct{ flag, address string }{{"--listen", c.Listen}, {"--metrics", c.Metrics}} {
		if a.address == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			errs = append(errs, dc.Errorf(dc.Invalid, "configure", a.flag, "want host:port: %w", err))
		}
	}
	if c.DeadAfter < 0 || c.StopTimeout < 0 {
		errs = append(errs, dc.Errorf(dc.Invalid, "configure", "", "a duration is negative"))
	}
	if c.SessionTTL != 0 && (c.SessionTTL < dc.MinSessionTTL || c.SessionTTL > dc.MaxSessionTTL) {
		errs = append(errs, dc.Errorf(dc.Invalid, "configure", "--session-ttl", "%s is not from %s to %s", c.SessionTTL, dc.MinSessionTTL, dc.MaxSessionTTL))
	}
	return errors.Join(errs...)
}

// stored is the configuration file of a node: what Init or Join was told. Flags of Run override it.
type stored struct {
	Version int    `json:"version"`
	Listen  string `json:"listen"`
	Mount   string `json:"mount,omitempty"`
}

func storedPath(dir string) string { return filepath.Join(dir, "config.json") }

func (s stored) save(dir string) error {
	s.Version = 1
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return dc.Wrap(err, "save configuration", dir)
	}
	return pki.WriteFile(storedPath(dir), append(b, '\n'))
}

func loadStored(dir string) (stored, error) {
	var s stored
	b, err := os.ReadFile(storedPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, dc.Errorf(dc.Corrupt, "load configuration", storedPath(dir), "%w", err)
	}
	return s, nil
}

// fill completes c from the configuration file and the defaults.
func (c *Config) fill() error {
	s, err := loadStored(c.Dir)
	if err != nil {
		return err
	}
	if c.Listen == "" {
		c.Listen = s.Listen
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Mount == "" {
		c.Mount = s.Mount
	}
	if c.Mount == "" {
		c.Mount = DefaultMount
	}
	for _, path := range []*string{&c.Dir, &c.Mount} {
		if *path, err = filepath.Abs(*path); err != nil {
			return dc.Wrap(err, "configure", *path)
		}
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 20 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Fatal == nil {
		log := c.Log
		c.Fatal = func(err error) {
			log.Error("the process must not go on", "err", err)
			os.Exit(1)
		}
	}
	return nil
}

// advertised is the address that other nodes reach a listener by: its own, or for one on all interfaces that of the first interface that is up.
func advertised(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return address
	}
	host = "127.0.0.1"
	addrs, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
				host = n.IP.String()
				break
			}
		}
	}
	return net.JoinHostPort(host, port)
}
