package kvfs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"missingos/fs"
	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/kv"
	"missingos/srv/replica"
	"missingos/srv/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tables stands in for meta's descriptors; the rows are the real service's.
type tables struct {
	*client.KV
	mu   sync.Mutex
	next uint64
	all  map[string]client.Descriptor
}

func (t *tables) CreateTable(_ context.Context, name string, mode uint32) (client.Descriptor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.all[name]; ok {
		return client.Descriptor{}, dc.Errorf(dc.Exists, "create", name, "")
	}
	t.next++
	t.all[name] = client.Descriptor{Kind: "table", Name: name, ID: t.next, Group: 5, Mode: mode, Created: time.Now()}
	return t.all[name], nil
}

func (t *tables) Table(_ context.Context, name string) (client.Descriptor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d, ok := t.all[name]; ok {
		return d, nil
	}
	return client.Descriptor{}, dc.Errorf(dc.NotFound, "table", name, "")
}

func (t *tables) Tables(_ context.Context, after string, limit int) (out []client.Descriptor, _ error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, d := range t.all {
		if name > after {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b client.Descriptor) int { return strings.Compare(a.Name, b.Name) })
	return out[:min(len(out), limit)], nil
}

func (t *tables) DropTable(_ context.Context, d client.Descriptor, _ bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, d.Name)
	return nil
}

type wire struct{ *rpc.Local }

func (w wire) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return w.Local, nil }
func (w wire) Group(string) (dc.GroupID, error)                 { return 5, nil }
func (w wire) Replicas(dc.GroupID) []dc.NodeID                  { return []dc.NodeID{1} }

// late gives the service its replica after both are made.
type late struct{ m *replica.Memory }

func (l *late) Leading(g dc.GroupID) (replica.Replica, error) { return l.m.Leading(g) }

// mounted mounts the room over a real service and gives its directory.
func mounted(t *testing.T) string {
	t.Helper()
	l := &late{}
	kind := kv.New(kv.Config{Replicas: l}).Kind()
	local := rpc.NewLocal()
	kind.Register(local)
	l.m = replica.NewMemory(5, kind)
	t.Cleanup(l.m.Close)
	w := wire{local}
	c := client.New(client.Config{Node: 1, Nodes: w, Directory: w})
	store := &tables{KV: client.NewKV(c, client.NewMeta(c)), all: map[string]client.Descriptor{}}
	m, err := fs.Mount(fs.Config{
		Mountpoint: filepath.Join(t.TempDir(), "dc"), Node: 1, Rooms: map[string]synth.Dir{"kv": New(store)}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return filepath.Join(m.Path(), "kv")
}

func TestShell(t *testing.T) {
	dir := mounted(t)
	if err := os.Mkdir(filepath.Join(dir, "t"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, script, want string }{
		{"put and get", "echo 42 > a; cat a; wc -c < a", "42\n3\n"},
		{"a shorter value replaces a longer one", "echo long value > a; echo x > a; cat a", "x\n"},
		{"append", "echo 1 > l; echo 2 >> l; cat l; rm l", "1\n2\n"},
		{"noclobber", "set -C; echo y > a && echo made; echo z > b && echo made", "bash: line 2: a: cannot overwrite existing file\nmade\n"},
		{"several writes", "seq 30000 > s; seq 30000 | cmp - s && echo same; wc -l < s", "same\n30000\n"},
		{"touch makes an empty row", "touch e; stat -c %s e; rm e", "0\n"},
		{"truncate", "printf hello > r; truncate -s 3 r; cat r; truncate -s 5 r; od -An -c r; rm r", "hel   h   e   l  \\0  \\0\n"},
		{"patch in the middle", "printf hello > r; printf E | dd of=r bs=1 seek=1 conv=notrunc status=none; cat r; rm r", "hEllo"},
		{"rename replaces", "echo new > tmp; mv tmp a; cat a; ls", "new\na\nb\ns\n"},
		{"wide rows", "mkdir d; echo 7 > d/age; ls d; cat d/age; rmdir d; rm -r d; ls -d d", "age\n7\nrmdir: failed to remove 'd': Directory not empty\nls: cannot access 'd': No such file or directory\n"},
		{"limits", "head -c 1048576 /dev/zero > big && stat -c %s big; printf x >> big; rm big", "1048576\nbash: line 2: printf: write error: File too large\n"},
		{"awkward names", "echo p > '100%'; echo q > 'a%2Fb'; ls; cat 'a%2Fb'; rm '100%' 'a%2Fb'", "100%\na\na%2Fb\nb\ns\nq\n"},
		{"a control file", "ls -A | grep -c dc; echo nonsense > .dc/ctl", "0\nbash: line 2: echo: write error: Invalid argument\n"},
		{"load and scan", "rm -r *; printf 'k1\\tv1\\n{\"key\":\"k2\",\"value\":\"v2\"}\\nk3\\tv3' > .dc/load; exec 3<>.dc/scan; echo format=tsv from=k2 >&3; cat <&3", "k2\tv2\nk3\tv3\n"},
		{"load counts", "exec 3<>.dc/load; printf 'a\\t1\\nb\\t2\\n' >&3; cat <&3", "2\n"},
		{
			"load names the line", "printf 'a\\t1\\nbroken\\nc\\t3\\n' > .dc/load; head -n1 ../../.dc/errors | grep -o 'line 2.*'; ls",
			"bash: line 2: printf: write error: Invalid argument\nline 2 (all before are loaded) t: neither {\"key\":..,\"value\":..} nor KEY<TAB>VALUE: \"broken\"\na\nb\nk1\nk2\nk3\n",
		},
		{"txn", `exec 3<>.dc/txn; echo '{"if":[{"key":"n","absent":true}],"do":[{"add":"n","by":2}]}' >&3; cat <&3; cat n`, "{\"succeeded\":true,\"revision\":REV,\"values\":{\"n\":\"2\"}}\n2"},
		{"a bad txn", `echo '{"do":[{"putt":"n"}]}' | tee .dc/txn > /dev/null`, "tee: .dc/txn: Invalid argument\n"},
		{"stat", "grep -E '^(rows|table|ranges)' .dc/stat; jq .rows .dc/stat.json", "table t\nrows 6\nranges 1\n6\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-c", "cd "+dir+"/t\n"+tt.script)
			cmd.Env = append(os.Environ(), "LC_ALL=C")
			out, _ := cmd.CombinedOutput()
			got := string(out)
			if i := strings.Index(got, `"revision":`); i >= 0 {
				j := i + len(`"revision":`)
				got = got[:j] + "REV" + strings.TrimLeft(got[j:], "0123456789")
			}
			if got != tt.want {
				t.Errorf("%s\n got %q\nwant %q", tt.script, got, tt.want)
			}
		})
	}
}

func TestManyRowsAreListedOnceEach(t *testing.T) {
	dir := filepath.Join(mounted(t), "t")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	for i := range 5000 {
		rows.WriteString(strings.Repeat("k", i%7) + string(rune('a'+i%26)) + strings.Repeat("0", 5) + time.Duration(i).String() + "\tv\n")
	}
	if err := os.WriteFile(filepath.Join(dir, ".dc/load"), []byte(rows.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 5000 {
		t.Errorf("%d names, want 5000", len(names))
	}
}

func TestNamesRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		segment := rapid.StringMatching(`[a%0-5EF.\x00]{1,8}`).Draw(rt, "segment")
		name := nameOf(segment)
		if got := segmentOf(name); got != segment {
			rt.Fatalf("%q became %q, then %q", segment, name, got)
		}
		if strings.ContainsRune(name, 0) || name == "." || name == ".." || name == controlName {
			rt.Fatalf("%q became %q, which cannot be a name", segment, name)
		}
	})
}

func TestRequests(t *testing.T) {
	if r, err := parseScan([]byte(`prefix="a b" limit=3 reverse format=tsv`)); err != nil || r.Prefix != "a b" || r.Limit != 3 || !r.Reverse || !r.tsv {
		t.Errorf("got %+v, %v", r, err)
	}
	for _, bad := range []string{"limit=x", "format=xml", "whatever", `from="open`} {
		if _, err := parseScan([]byte(bad)); !errors.Is(err, dc.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "[]", `{"do":[{}]}`, `{"do":[{"put":"a","delete":"b"}]}`, `{"if":[{}]}`, `{"unless":[]}`} {
		if _, err := parseTxn([]byte(bad)); !errors.Is(err, dc.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for line, want := range map[string]client.KVPair{
		"k\tv":                               {Key: "k", Value: []byte("v")},
		`k\tq` + "\t" + `a\nb`:               {Key: "k\tq", Value: []byte("a\nb")},
		`{"key":"k","value":"v"}`:            {Key: "k", Value: []byte("v")},
		`{"key":"k","value64":"/w==","x":1}`: {Key: "k", Value: []byte{0xff}},
	} {
		got, err := parseLine([]byte(line))
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%q: %s", line, diff)
		}
	}
	p := client.KVPair{Key: "a\tb", Value: []byte("x\ny\n")}
	back, err := parseLine([]byte(strings.TrimSuffix(string(appendTSV(nil, p, false)), "\n")))
	if err != nil || back.Key != p.Key || string(back.Value) != "x\ny" {
		t.Errorf("tsv round trip: %+v, %v", back, err)
	}
}
