package datafs_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	mapPath = "DATAFS_TEST_MAP"
	mapAt   = "DATAFS_TEST_AT"
)

// mapped gives a file's content as a process sees it that maps it, and then writes p at an offset through the mapping. It takes a process of
// its own: a page fault of this one could wait for a goroutine that waits for the fault (a collection stops the world first).
func mapped(t *testing.T, path string, at int, p []byte) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), mapPath+"="+path, mapAt+"="+strconv.Itoa(at))
	cmd.Stdin = bytes.NewReader(p)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	check(t, err)
	return out
}

// mapFile is what that process does.
func mapFile(path string) {
	fail := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	fail(err)
	st, err := f.Stat()
	fail(err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	fail(err)
	_, err = os.Stdout.Write(bytes.Clone(m))
	fail(err)
	p, err := io.ReadAll(os.Stdin)
	fail(err)
	at, err := strconv.Atoi(os.Getenv(mapAt))
	fail(err)
	copy(m[at:], p)
	fail(unix.Msync(m, unix.MS_SYNC))
	fail(unix.Munmap(m))
	fail(f.Close())
}
