package cluster

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"missingos/srv/dcpb"
	"missingos/srv/node"
)

// mounted has every node show its tree, and gives the path of node i's /dc/data.
func mounted(t *testing.T) (Option, func(i int) string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE here")
	}
	top := t.TempDir()
	var mu sync.Mutex
	at := map[string]string{}
	path := func(dir string) string {
		mu.Lock()
		defer mu.Unlock()
		if at[dir] == "" {
			at[dir] = filepath.Join(top, filepath.Base(dir))
		}
		return at[dir]
	}
	return Configure(func(c *node.Config) { c.NoMount, c.Mount = false, path(c.Dir) }),
		func(i int) string { return filepath.Join(top, fmt.Sprint("n", i), "data") }
}

// tree is a source tree of small and larger files, the same each time.
func tree(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for i := range 120 {
		size := 100 + i*i*i%40_000
		if i%40 == 39 {
			size = 5 << 20
		}
		line := fmt.Sprintf("file %d, line after line\n", i)
		files[fmt.Sprintf("dir%d/file%d", i%7, i)] = []byte(strings.Repeat(line, size/len(line)+1))[:size]
	}
	return files
}

func sameTree(t *testing.T, root string, want map[string][]byte) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		found++
		name, _ := filepath.Rel(root, path)
		got, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(got, want[name]) {
			t.Errorf("%s: %d bytes that are not the %d written", name, len(got), len(want[name]))
		}
		return err
	})
	if err != nil || found != len(want) {
		t.Fatalf("%d of %d files found below %s: %v", found, len(want), root, err)
	}
}

func TestFilesSurviveTheLossOfTheirLeaderDuringACopy(t *testing.T) {
	t.Parallel()
	option, data := mounted(t)
	c := Start(t, 3, option)
	victim := 0
	c.Wait("a leader of data/0 elsewhere than on node 1", func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			if g.Name == "data/0" {
				victim = int(g.Leader)
			}
		}
		if victim == 0 {
			return "no leader"
		}
		return ""
	})
	source := 1
	if victim == 1 {
		source = 2
	}
	files := tree(t)
	n := 0
	for name, content := range files {
		if n++; n == len(files)/2 {
			c.Kill(victim)
		}
		path := filepath.Join(data(source), "copy", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sameTree(t, filepath.Join(data(6-source-victim), "copy"), files)
	c.Restart(victim)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(data(victim), "copy")); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	sameTree(t, filepath.Join(data(victim), "copy"), files)
}
