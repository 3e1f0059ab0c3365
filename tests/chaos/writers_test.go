//go:build long

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// An outcome is what a writer knows of its write.
type outcome int

const (
	refused outcome = iota // certainly not done
	unknown
	acknowledged
)

// A ledger is what all writers know. It goes from their process to the test's as JSON.
type ledger struct {
	mu      sync.Mutex
	Writes  map[string]map[string]outcome // by tree, by the id that was written
	Numbers map[string]string             // counted numbers that were acknowledged, by whom
	Maybe   int                           // increments of unknown outcome
	Gap     map[string]time.Duration      // the longest time without an acknowledgement, by tree
	Errs    map[string]int
	Faults  []string
	last    map[string]time.Time // the latest acknowledgement, by tree
}

func newLedger() *ledger {
	return &ledger{
		Writes: map[string]map[string]outcome{}, Numbers: map[string]string{}, last: map[string]time.Time{}, Gap: map[string]time.Duration{},
		Errs: map[string]int{},
	}
}

// writersEnv makes the test binary the writers' process: the mounts, then the trees, by colons. They write until its standard input
// ends, and it prints their ledger. The test's own process must have no file of the mounts open: a child that it starts closes
// them on exec, and would wait for the very daemon that it is started to resume.
const writersEnv = "DC_CHAOS_WRITERS"

func TestMain(m *testing.M) {
	spec := os.Getenv(writersEnv)
	if spec == "" {
		os.Exit(m.Run())
	}
	mounts, trees, _ := strings.Cut(spec, "::")
	ctx, cancel := context.WithCancel(context.Background())
	l := newLedger()
	var wg sync.WaitGroup
	for i, mount := range strings.Split(mounts, ":") {
		name := fmt.Sprintf("n%d", i+1)
		for tree := range strings.SplitSeq(trees, ":") {
			w := writer{tree: tree, name: name, mount: mount, ledger: l}
			wg.Go(func() { w.run(ctx) })
			if tree == "lock" {
				wg.Go(func() { l.count(ctx, mount, name) })
			}
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	wg.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (l *ledger) note(tree, id string, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Writes[tree] == nil {
		l.Writes[tree] = map[string]outcome{}
	}
	l.Writes[tree][id] = o
	if o == acknowledged {
		l.ackedLocked(tree)
	}
}

func (l *ledger) ackedLocked(tree string) {
	now := time.Now()
	if was, ok := l.last[tree]; ok {
		l.Gap[tree] = max(l.Gap[tree], now.Sub(was))
	}
	l.last[tree] = now
}

// counted notes an acknowledged increment to n; it must be the only one.
func (l *ledger) counted(n, by string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, ok := l.Numbers[n]; ok {
		l.Faults = append(l.Faults, fmt.Sprintf("the counter was set to %s by %s and by %s, both acknowledged under the lock", n, other, by))
	}
	l.Numbers[n] = by
	l.ackedLocked("flock")
}

func (l *ledger) failed(tree string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errno syscall.Errno
	errors.As(err, &errno)
	l.Errs[tree+": "+errno.Error()]++
}

// A writer writes one line after the other to one tree through one mount until ctx ends.
type writer struct {
	tree, name, mount string
	ledger            *ledger
}

// linesPerFile keeps files below the limits of their trees.
const linesPerFile = 1000

func (w writer) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		id := fmt.Sprintf("%s-%d", w.name, n)
		o, err := w.write(n, id)
		w.ledger.note(w.tree, id, o)
		if err != nil {
			w.ledger.failed(w.tree, err)
			pause(ctx, 50*time.Millisecond)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// write appends one line, or for every tenth makes a file of its own.
func (w writer) write(n int, id string) (outcome, error) {
	if n%10 == 9 && w.tree != "topics" {
		return put(filepath.Join(w.mount, w.tree, "chaos", "one", id), os.O_EXCL, id, w.tree == "data")
	}
	path := filepath.Join(w.mount, w.tree, "chaos", fmt.Sprintf("%s.%d", w.name, n/linesPerFile))
	if w.tree == "topics" {
		path = filepath.Join(w.mount, "topics", "chaos", "log")
	}
	return put(path, os.O_APPEND, id+"\n", w.tree == "data")
}

// put opens, writes and closes. Synthetic trees acknowledge in write(2), data in fsync and close.
func put(path string, how int, text string, data bool) (outcome, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|how, 0o644)
	if err != nil {
		if how&os.O_EXCL != 0 {
			return unknown, err // it may have been made, empty
		}
		return refused, err
	}
	_, err = f.WriteString(text)
	if err == nil && data {
		err = f.Sync()
	}
	if closed := f.Close(); data {
		err = errors.Join(err, closed)
	}
	if err != nil {
		return unknown, err
	}
	return acknowledged, nil
}

// count increments the number in a file under its lock, through the descriptor that holds it.
func (l *ledger) count(ctx context.Context, mount, name string) {
	path := filepath.Join(mount, "lock", "chaos", "counter")
	for n := 0; ctx.Err() == nil; n++ {
		by := fmt.Sprintf("%s-%d", name, n)
		number, done, err := increment(path)
		switch {
		case err == nil:
			l.counted(number, by)
		case done:
			l.mu.Lock()
			l.Maybe++
			l.mu.Unlock()
			fallthrough
		default:
			l.failed("flock", err)
			pause(ctx, 50*time.Millisecond)
		}
	}
}

// increment tells the number that it wrote; written says that it tried, so that an error leaves the outcome unknown.
func increment(path string) (number string, written bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	if err := flock(f); err != nil {
		return "", false, err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return "", false, err
	}
	was, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return "", false, err
	}
	number = strconv.Itoa(was + 1)
	_, err = f.WriteAt([]byte(fmt.Sprintf("%020d\n", was+1)), 0)
	return number, true, err
}

// flock waits for the lock. A blocked wait ends when the daemon does.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// found counts the ids that a tree holds, as seen through one mount.
func found(mount, tree string) (map[string]int, error) {
	ids := map[string]int{}
	if tree == "topics" {
		text, err := os.ReadFile(filepath.Join(mount, "topics", "chaos", "log"))
		return lines(ids, text), err
	}
	dir := filepath.Join(mount, tree, "chaos")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() || e.Name() == "counter" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		lines(ids, text)
	}
	entries, err = os.ReadDir(filepath.Join(dir, "one"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, "one", e.Name()))
		if err != nil {
			return nil, err
		}
		switch string(text) {
		case e.Name():
			ids[e.Name()]++
		case "":
			ids["empty "+e.Name()]++ // made, not written: the writer did not get that far
		default:
			ids[fmt.Sprintf("wrong content %q of %s", text, e.Name())]++
		}
	}
	return ids, nil
}

func lines(ids map[string]int, text []byte) map[string]int {
	for line := range bytes.Lines(text) {
		ids[strings.TrimSuffix(string(line), "\n")]++
	}
	return ids
}
