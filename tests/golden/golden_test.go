package golden

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"

	"missingos/consensus/logstore"
	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/machine/data"
	"missingos/storage/machine/job"
	"missingos/storage/machine/kv"
	"missingos/storage/machine/lock"
	"missingos/storage/machine/meta"
	"missingos/storage/machine/topic"
)

// kinds are the groups of a new cluster, by number.
var kinds = []struct {
	group dc.GroupID
	name  string
	make  func() storage.Machine
}{
	{1, "meta", meta.New}, {2, "lock", lock.New}, {3, "jobs", job.New}, {4, "data", data.New}, {5, "kv", kv.New}, {6, "topic", topic.New},
}

func machineOf(file string) func() storage.Machine {
	for _, k := range kinds {
		if strings.HasSuffix(file, "-"+k.name+".log.zst") {
			return k.make
		}
	}
	return nil
}

// frame is one log entry: index, term, type, length (uvarints), data.
func frame(b []byte, l *raft.Log) []byte {
	for _, n := range []uint64{l.Index, l.Term, uint64(l.Type), uint64(len(l.Data))} {
		b = binary.AppendUvarint(b, n)
	}
	return append(b, l.Data...)
}

// frames calls fn for each entry of a recorded log.
func frames(r io.Reader, fn func(*raft.Log) error) error {
	in := bufio.NewReader(r)
	for {
		var n [4]uint64
		for i := range n {
			v, err := binary.ReadUvarint(in)
			if err == io.EOF && i == 0 {
				return nil
			}
			if err != nil {
				return err
			}
			n[i] = v
		}
		l := &raft.Log{Index: n[0], Term: n[1], Type: raft.LogType(n[2]), Data: make([]byte, n[3])}
		if _, err := io.ReadFull(in, l.Data); err != nil {
			return err
		}
		if err := fn(l); err != nil {
			return err
		}
	}
}

// decode reads what consensus puts into an entry: a version (1), the clock, and the commands with their lengths. It is written out here because this form must
// never change its meaning either.
func decode(b []byte) (clock int64, commands [][]byte, err error) {
	if len(b) < 10 || b[0] != 1 {
		return 0, nil, fmt.Errorf("unknown form of entry, %x", b[:min(len(b), 10)])
	}
	clock = int64(binary.BigEndian.Uint64(b[1:]))
	b = b[9:]
	n, k := binary.Uvarint(b)
	b = b[k:]
	for range n {
		size, k := binary.Uvarint(b)
		commands, b = append(commands, b[k:k+int(size)]), b[k+int(size):]
	}
	return clock, commands, nil
}

// replay gives the digest of what a machine makes of a recorded log.
func replay(t *testing.T, file string) string {
	t.Helper()
	packed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zstd.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := storage.Open(t.TempDir(), machineOf(file)(), storage.Config{BootID: "golden", Fatal: func(err error) { t.Fatal(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	refused := 0
	err = frames(r, func(l *raft.Log) error {
		if l.Type != raft.LogCommand {
			return nil
		}
		clock, commands, err := decode(l.Data)
		if err != nil {
			return err
		}
		for _, res := range s.Apply([]storage.Entry{{Index: dc.Index(l.Index), Term: dc.Term(l.Term), Clock: clock, Commands: commands}})[0] {
			if res.Err != nil {
				refused++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sum, err := s.Hash()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %x applied=%d refused=%d", filepath.Base(file), sum, s.Applied(), refused)
}

const sums = "testdata/sums"

func TestOldLogsMeanWhatTheyMeant(t *testing.T) {
	want, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(want)), "\n")
	if len(lines) < len(kinds) {
		t.Fatalf("%d logs are recorded, want one of each kind at least", len(lines))
	}
	for _, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		t.Run(name, func(t *testing.T) {
			if got := replay(t, filepath.Join("testdata", name)); got != line {
				t.Errorf("the old log comes to something else now:\n%s, was\n%s", got, line)
			}
		})
	}
}

// stored is the digest and the applied entry of a node's own state.
func stored(t *testing.T, dir string, machine func() storage.Machine) string {
	t.Helper()
	s, err := storage.Open(dir, machine(), storage.Config{Fatal: func(err error) { t.Fatal(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sum, err := s.Hash()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x applied=%d", sum, s.Applied())
}

func TestRecord(t *testing.T) {
	dir, name := os.Getenv("DC_GOLDEN_RECORD"), os.Getenv("DC_GOLDEN_NAME")
	if dir == "" {
		t.Skip("DC_GOLDEN_RECORD names no directory")
	}
	fs, err := logstore.OpenFS(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := logstore.OpenShared(logstore.SharedConfig{FS: fs, Fatal: func(err error) { t.Fatal(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	out, err := os.OpenFile(sums, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, k := range kinds {
		var b []byte
		store := log.Open(k.group)
		last, err := store.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := store.GetLog(i, &l); err != nil {
				t.Fatalf("%s, entry %d: %v; the log must reach back to the beginning", k.name, i, err)
			}
			b = frame(b, &l)
		}
		w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+"-"+k.name+".log.zst")
		if err := os.WriteFile(file, w.EncodeAll(b, nil), 0o644); err != nil {
			t.Fatal(err)
		}
		line := replay(t, file)
		if have := stored(t, filepath.Join(dir, "groups", k.group.String(), "shard"), k.make); !strings.Contains(line, have) {
			t.Errorf("the node itself has %s after %s", have, line)
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			t.Fatal(err)
		}
	}
}
