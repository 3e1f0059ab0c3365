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
	return Config{MemTableBytes: minMemTableBytes, BootID: "boot-1", Fatal: func(err error) { t.Errorf("fatal: %v", err) }}
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

// clone copies a shard's directory as a process that is killed leaves it: everything written is there.
func clone(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	copyTree(t, dir, to)
	return to
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.Walk(from, func(path string, fi os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil // Badger removed it meanwhile
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if fi.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), content, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
