package datafs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Everybody works in one directory at once, on two nodes, each with names of its own; what one has done it sees on both nodes with its next call.
func TestManyChangeOneDirectoryAtOnce(t *testing.T) {
	a, b := two(t)
	const workers, steps = 4, 60
	var wg sync.WaitGroup
	for w := range workers {
		for on, root := range []string{a, b} {
			wg.Go(func() {
				x := &worker{t: t, here: root, both: []string{a, b}, name: fmt.Sprintf("w%d-%d", on, w), r: rand.New(rand.NewPCG(uint64(w), uint64(on)))}
				for range steps {
					x.step()
				}
			})
		}
	}
	wg.Wait()
	for _, root := range []string{a, b} {
		entries, err := os.ReadDir(root)
		check(t, err)
		for _, e := range entries {
			if _, err := os.Lstat(filepath.Join(root, e.Name())); err != nil {
				t.Errorf("listed, but %v", err)
			}
		}
	}
}

type worker struct {
	t    *testing.T
	here string
	both []string
	name string
	r    *rand.Rand
	at   string // where the file is; empty: nowhere
	text string
}

func (x *worker) step() {
	next := fmt.Sprintf("%s-%d", x.name, x.r.IntN(3))
	var err error
	switch {
	case x.at == "":
		x.at, x.text = next, fmt.Sprint(x.r.Uint64())
		err = os.WriteFile(filepath.Join(x.here, x.at), []byte(x.text), 0o644)
	case x.r.IntN(3) == 0:
		err = os.Remove(filepath.Join(x.here, x.at))
		x.at = ""
	case x.r.IntN(2) == 0:
		err = os.Rename(filepath.Join(x.here, x.at), filepath.Join(x.here, next))
		x.at = next
	default:
		x.text = fmt.Sprint(x.r.Uint64())
		err = os.WriteFile(filepath.Join(x.here, x.at), []byte(x.text), 0o644)
	}
	if err != nil {
		x.t.Error(err)
	}
	for _, root := range x.both {
		for i := range 3 {
			name := fmt.Sprintf("%s-%d", x.name, i)
			got, err := os.ReadFile(filepath.Join(root, name))
			switch {
			case name == x.at && (err != nil || string(got) != x.text):
				x.t.Errorf("%s in %s: %q, %v; want %q", name, root, got, err, x.text)
			case name != x.at && !errors.Is(err, os.ErrNotExist):
				x.t.Errorf("%s in %s: %q, %v; want nothing there", name, root, got, err)
			}
		}
	}
}
