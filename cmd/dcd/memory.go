package main

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// limitMemory gives the collector a soft limit of half the machine's memory, unless GOMEMLIMIT says otherwise. Without one the arenas of many shards, which
// are mostly empty, make the collector wait for twice their size before it runs.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		debug.SetMemoryLimit(int64(info.Totalram) * int64(info.Unit) / 2)
	}
}
