package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A store is one of the two clusters under test.
type store interface {
	name() string
	up(ctx context.Context, dir string) error
	down(ctx context.Context) error
	// processes are the servers that run.
	processes() []int
	// leader is the server that leads, by number; kill and start act on a server.
	leader(ctx context.Context) (int, error)
	kill(ctx context.Context, n int) error
	start(ctx context.Context, n int) error
	// dial opens a client; everywhere says that it must find its way when servers die.
	dial(ctx context.Context, everywhere bool) (caller, error)
}

// A caller is a client of a store. Paths are dir/name, and dir exists after mkdir.
type caller interface {
	mkdir(ctx context.Context, dir string) error
	put(ctx context.Context, path string, value []byte) error
	get(ctx context.Context, path string) error
	// lock takes the lock named path, and releases it.
	lock(ctx context.Context, path string) error
	// watch calls fn with the value of every put below dir, until ctx ends; ready is closed when it has begun.
	watch(ctx context.Context, dir string, ready chan<- struct{}, fn func(value []byte)) error
	close()
}

// usage is the processor time and the memory of processes.
type usage struct {
	cpu       time.Duration
	anonymous int64 // bytes that are not the page cache's
}

func measureUsage(pids []int) (u usage, err error) {
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return u, err
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		u.cpu += time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return u, err
		}
		for line := range strings.Lines(string(status)) {
			if kb, ok := strings.CutPrefix(line, "RssAnon:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(kb)[0], 10, 64)
				u.anonymous += n << 10
			}
		}
	}
	return u, nil
}
