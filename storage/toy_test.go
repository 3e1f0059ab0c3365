package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"missingos/srv/dc"
	"missingos/storage/command"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Badger's dependencies keep these for the life of the process.
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// toy is a machine whose commands are lines: "set k v", "del k", "add k n", "big k bytes", "clear prefix", "fail".
type toy struct{}

func (toy) Apply(tx Tx, body []byte) ([]byte, error) {
	f := strings.Fields(string(body))
	switch f[0] {
	case "set":
		tx.Set([]byte(f[1]), []byte(f[2]))
	case "del":
		tx.Delete([]byte(f[1]))
	case "add":
		n, _ := strconv.ParseUint(f[2], 10, 64)
		old, ok := tx.Get([]byte(f[1]))
		if ok && len(old) == 8 {
			n += binary.BigEndian.Uint64(old)
		}
		tx.Set([]byte(f[1]), binary.BigEndian.AppendUint64(nil, n))
		tx.Emit(n)
		return fmt.Appendf(nil, "%d", n), nil
	case "big":
		n, _ := strconv.Atoi(f[2])
		tx.Set([]byte(f[1]), bytes.Repeat([]byte(f[1]+"."), n)[:n])
	case "clear":
		n := 0
		for key := range tx.Scan(Span{Start: []byte(f[1]), End: []byte(f[1] + "\xff"), KeysOnly: true}) {
			tx.Delete(key)
			n++
		}
		return fmt.Appendf(nil, "%d", n), nil
	case "fail":
		return nil, dc.Errorf(dc.Conflict, "toy", "x", "refused at %d", tx.Clock())
	case "write-and-fail":
		tx.Set([]byte("x"), []byte("y"))
		return nil, dc.Errorf(dc.Conflict, "toy", "x", "too late")
	case "reserved":
		tx.Set([]byte("!e"), nil)
	}
	return []byte("ok"), nil
}

func plain(lines ...string) [][]byte {
	var c [][]byte
	for _, l := range lines {
		c = append(c, command.Encode(dc.RequestID{}, []byte(l)))
	}
	return c
}

func entry(i int, lines ...string) Entry {
	return Entry{Index: dc.Index(i), Term: 1, Clock: int64(1_000_000 + i), Commands: plain(lines...)}
}

func testConfig(t testing.TB) Config {
	return Config{MemTableBytes: minMemTableBytes, ShelveAfter: -1, BootID: "boot-1", Fatal: func(err error) { t.Errorf("fatal: %v", err) }, hooks: hooks{pause: 1}}
}

func mustOpen(t testing.TB, dir string, cfg Config) *Shard {
	t.Helper()
	s, err := Open(dir, toy{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t testing.TB, s *Shard) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustHash(t testing.TB, s *Shard) string {
	t.Helper()
	h, err := s.Hash()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h)
}

func value(t testing.TB, s *Shard, key string) string {
	t.Helper()
	var v []byte
	if err := s.View(func(r Reader) error { v, _ = r.Get([]byte(key)); return nil }); err != nil {
		t.Fatal(err)
	}
	return string(v)
}

// clone copies a shard's directory as a process that is killed leaves it: everything written is there. The shard may be
// compacting, so the copy is taken again until no file came or went meanwhile.
func clone(t testing.TB, dir string) string {
	t.Helper()
	for range 100 {
		to := t.TempDir()
		before := listing(t, dir)
		copyTree(t, dir, to)
		if listing(t, dir) == before {
			return to
		}
	}
	t.Fatal("the directory never stands still")
	return ""
}

// listing is the names of the files and the content of the manifests.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	walk(t, dir, func(rel string, _ os.FileInfo, content []byte) {
		b.WriteString(rel + "\n")
		if filepath.Base(rel) == "MANIFEST" {
			b.Write(content)
		}
	})
	return b.String()
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	walk(t, from, func(rel string, fi os.FileInfo, content []byte) {
		name, err := filepath.Join(to, rel), error(nil)
		if fi.IsDir() {
			err = os.MkdirAll(name, 0o700)
		} else {
			err = writeSparse(name, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// writeSparse leaves the zeros at the end as a hole: the logs of memtables are mostly that.
func writeSparse(name string, content []byte) error {
	if err := os.WriteFile(name, bytes.TrimRight(content, "\x00"), 0o600); err != nil {
		return err
	}
	return os.Truncate(name, int64(len(content)))
}

func walk(t testing.TB, dir string, fn func(rel string, fi os.FileInfo, content []byte)) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		var content []byte
		if err == nil && !fi.IsDir() {
			content, err = os.ReadFile(path)
		}
		if os.IsNotExist(err) {
			return nil // Badger removed it meanwhile
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fn(rel, fi, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
