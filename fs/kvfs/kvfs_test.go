package kvfs_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/fs"
	"missingos/fs/kvfs"
	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/kv"
	"missingos/srv/replica"
	"missingos/srv/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 5

// store is /dc/kv with rows in a real service on one replica in memory, and the descriptors of tables in a map.
type store struct {
	*client.KV
	local *rpc.Local

	mu     sync.Mutex
	tables map[string]client.Descriptor
	lastID uint64
}

func (s *store) CreateTable(_ context.Context, name string, mode uint32) (client.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.tables[name]; ok {
		return client.Descriptor{}, dc.Errorf(dc.Exists, "create", name, "")
	}
	s.lastID++
	s.tables[name] = client.Descriptor{Kind: "table", Name: name, ID: s.lastID, Group: group, Mode: mode, Created: time.Now()}
	return s.tables[name], nil
}

func (s *store) Table(_ context.Context, name string) (client.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tables[name]
	if !ok {
		return t, dc.Errorf(dc.NotFound, "lookup", name, "")
	}
	return t, nil
}

func (s *store) Tables(_ context.Context, after string, limit int) ([]client.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []client.Descriptor
	for _, t := range s.tables {
		if t.Name > after {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b client.Descriptor) int { return strings.Compare(a.Name, b.Name) })
	return out[:min(limit, len(out))], nil
}

func (s *store) DropTable(ctx context.Context, t client.Descriptor, onlyIfEmpty bool) error {
	h := &dcpb.Header{Group: uint64(group), Client: t.ID, Seq: 1, Done: 1, IssuedMs: time.Now().UnixMilli(), Principal: &dcpb.Principal{Node: 1}}
	if onlyIfEmpty {
		h.Client, h.Seq = uint64(time.Now().UnixNano()), 1
	}
	if _, err := dcpb.NewKVClient(s.local).Drop(ctx, &dcpb.KVDropRequest{Header: h, Table: t.ID, OnlyIfEmpty: onlyIfEmpty}); err != nil {
		return rpc.FromStatus(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tables, t.Name)
	return nil
}

// wire takes every request to the one replica.
type wire struct{ *rpc.Local }

func (w wire) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return w.Local, nil }
func (w wire) Group(string) (dc.GroupID, error)                 { return group, nil }
func (w wire) Replicas(dc.GroupID) []dc.NodeID                  { return []dc.NodeID{1} }

type leading struct{ *replica.Memory }

// mount mounts the room and gives its directory and what is behind it.
func mount(t *testing.T) (string, *store) {
	t.Helper()
	lead := &leading{}
	kind := kv.New(kv.Config{Replicas: lead}).Kind()
	s := &store{local: rpc.NewLocal(), tables: map[string]client.Descriptor{}}
	kind.Register(s.local)
	lead.Memory = replica.NewMemory(group, kind)
	t.Cleanup(lead.Close)
	c := client.New(client.Config{Node: 1, Nodes: wire{s.local}, Directory: wire{s.local}})
	s.KV = client.NewKV(c, client.NewMeta(c))
	m, err := fs.Mount(fs.Config{
		Mountpoint: filepath.Join(t.TempDir(), "dc"), Node: 1, Rooms: map[string]synth.Dir{"kv": kvfs.New(s)}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
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
	return filepath.Join(m.Path(), "kv"), s
}

// expect runs a shell script in dir and checks all that it prints.
func expect(t *testing.T, dir, script, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "cd "+dir+"\n"+script)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if got := strings.TrimSpace(string(out)); got != want {
		errors, _ := os.ReadFile(filepath.Join(dir, "../.dc/errors"))
		t.Errorf("%s\ngot  %q (%v)\nwant %q\n%.300s", script, got, err, want, errors)
	}
}

func TestRowsAreFiles(t *testing.T) {
	dir, _ := mount(t)
	for _, test := range []struct{ script, want string }{
		{"mkdir users; echo 42 > users/ada; cat users/ada; stat -c %s users/ada", "42\n3"},
		{"echo longer > users/ada; echo x > users/ada; cat users/ada", "x"},
		{": > users/ada; cat users/ada", "x"},
		{"echo more >> users/ada; cat users/ada", "x\nmore"},
		{"set -C; echo y > users/ada", "bash: line 2: users/ada: cannot overwrite existing file"},
		{"echo new > users/tmp; mv users/tmp users/ada; cat users/ada; ls users", "new\nada"},
		{"mkdir users/bob; echo 7 > users/bob/age; ls users users/bob; cat users/bob/age", "users:\nada\nbob\n\nusers/bob:\nage\n7"},
		{"rmdir users/bob", "rmdir: failed to remove 'users/bob': Directory not empty"},
		{"rm users/bob/age; ls users/bob; rmdir users/bob; ls users", "ada"},
		{"echo 1 > users/ada/x", "bash: line 2: users/ada/x: Not a directory"},
		{"printf abcdef > users/p; printf XY | dd of=users/p bs=1 seek=2 conv=notrunc status=none; cat users/p", "abXYef"},
		{"truncate -s 3 users/p; cat users/p; truncate -s 5 users/p; wc -c < users/p", "abX5"},
		{"rmdir users", "rmdir: failed to remove 'users': Directory not empty"},
		{"mkdir other; mv users/p other/p; cat other/p | head -c 3; ls users", "abXada"},
		{"cp -p users/ada other/ada; cmp users/ada other/ada && rm -r other; ls", "users"},
		{"touch users/.dc", ""},
		{"mkdir users/.dc/x 2>&1 | grep -c 'not permitted'", "1"},
		{"ls -A users; ls users/.dc", "ada\nctl\nload\nranges\nscan\nstat\nstat.json\ntxn"},
		{"v=$(getfattr --only-values -n user.dc.version users/ada); echo z > users/ada; [ $(getfattr --only-values -n user.dc.version users/ada) -gt $v ] && echo grows", "grows"},
		{"mkdir -p users/x/y; echo 1 > users/x/y/z; mv users/x users/w; ls users; cat users/w/y/z", "ada\nw\n1"},
		{"touch -d 2001-02-03T04:05:06Z users/ada; mv users/ada users/a; TZ=UTC stat -c %.19y users/a", "2001-02-03 04:05:06"},
		{"echo drop > users/.dc/ctl; ls", ""},
	} {
		expect(t, dir, test.script, test.want)
	}
}

func TestNamesThatAFileCannotHaveAreEscaped(t *testing.T) {
	dir, s := mount(t)
	table, err := s.CreateTable(t.Context(), "t", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{".": "%2E", "..": "%2E.", ".dc": "%2Edc", "nul\x00": "nul%00", "100%": "100%", "%2F": "%252F", "é ü": "é ü"}
	for key := range keys {
		if _, err := s.Put(t.Context(), table, key, client.KVPut{Data: []byte(key), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	found, err := os.ReadDir(filepath.Join(dir, "t"))
	if err != nil || len(found) != len(keys) {
		t.Errorf("%v, %v; want %d names", found, err, len(keys))
	}
	for key, name := range keys {
		if got, err := os.ReadFile(filepath.Join(dir, "t", name)); err != nil || string(got) != key {
			t.Errorf("%s reads %q, %v; want %q", name, got, err, key)
		}
	}
}

func TestARowIsAtMostOneMebibyte(t *testing.T) {
	dir, _ := mount(t)
	expect(t, dir, `mkdir t; head -c 1048576 /dev/zero > t/max; stat -c %s t/max; echo x >> t/max; stat -c %s t/max; head -n 1 ../.dc/errors | grep -o '1 MiB'`,
		"1048576\nbash: line 2: echo: write error: File too large\n1048576\n1 MiB")
	expect(t, dir, `head -c 1048577 /dev/zero > big; head -c 1048577 /dev/zero | dd of=t/over bs=2M iflag=fullblock status=none; ls t`,
		"bash: line 2: big: Operation not permitted\ndd: error writing 't/over': File too large\nmax\nover")
	expect(t, dir, `touch t/$(printf 'k%.0s' {1..256}) 2>&1 | grep -o 'too long'`, "too long")
}

func TestAReplacedRowReadsAsOneOfTheTwo(t *testing.T) {
	dir, _ := mount(t)
	expect(t, dir, "mkdir t; echo old > t/x; echo new > t/tmp; exec 3<t/x; mv t/tmp t/x; cat <&3", "new")
	expect(t, dir, "echo old > t/x; exec 3<t/x; rm t/x; cat <&3", "cat: -: Stale file handle")
}

func TestWritesAndReplacements(t *testing.T) {
	dir, _ := mount(t)
	const stale = "bash: line 2: echo: write error: Stale file handle"
	for _, test := range []struct{ script, want string }{
		{"mkdir t; echo old > t/x; exec 3>t/x; echo new > t/tmp; mv t/tmp t/x; echo mine >&3; cat t/x", "mine"},
		{"exec 3>>t/x; echo new > t/tmp; mv t/tmp t/x; echo mine >&3; cat t/x", "new\nmine"},
		{"exec 3>t/x; echo one >&3; echo new > t/tmp; mv t/tmp t/x; echo two >&3; cat t/x", stale + "\nnew"},
		{"exec 3>t/x; rm t/x; echo mine >&3; ls t", stale},
		{"set -C; exec 3>t/lock; rm t/lock; echo other > t/lock; echo mine >&3; cat t/lock", stale + "\nother"},
	} {
		expect(t, dir, test.script, test.want)
	}
}

// The kernel asks for attributes at the end of open(2) and starts anew if it is told ESTALE, which would make the row twice.
func TestARowRemovedWhileItIsMadeIsNotMadeAgain(t *testing.T) {
	dir, s := mount(t)
	if err := os.Mkdir(filepath.Join(dir, "t"), 0o755); err != nil {
		t.Fatal(err)
	}
	table, err := s.Table(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "t", "x"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Remove(t.Context(), table, "x", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("fstat of a removed row: %v, want what it was", err)
	}
	if _, err := f.WriteString("lost"); err == nil {
		t.Error("a write into a removed row says that it is committed")
	}
	if _, err := os.Stat(f.Name()); !os.IsNotExist(err) {
		t.Errorf("the removed row is back: %v", err)
	}
}

func TestALargeTableIsListedByPages(t *testing.T) {
	dir, s := mount(t)
	table, err := s.CreateTable(t.Context(), "t", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	const rows = 20_000
	var page []client.KVPair
	for i := range rows {
		page = append(page, client.KVPair{Key: fmt.Sprintf("row%06d", i), Value: []byte("v")})
		if len(page) == 1000 {
			if err := s.Load(t.Context(), table, page); err != nil {
				t.Fatal(err)
			}
			page = nil
		}
	}
	found, err := os.ReadDir(filepath.Join(dir, "t"))
	if err != nil || len(found) != rows || found[rows-1].Name() != fmt.Sprintf("row%06d", rows-1) {
		t.Errorf("%d names, %v; want %d", len(found), err, rows)
	}
}

func TestBulkDoors(t *testing.T) {
	dir, _ := mount(t)
	for _, test := range []struct{ script, want string }{
		{`mkdir t; printf '{"key":"a","value":"1"}\nb\t2\n\nc/d\tx\\ty\n' > t/.dc/load; cat t/a t/b t/c/d`, "12x\ty"},
		{`exec 3<>t/.dc/load; seq 5000 | awk '{printf "n%05d\tv%d\n", $1, $1}' >&3; cat <&3`, "5000"},
		{
			`printf 'e1\tv\nbroken\ne2\tv\n' > t/.dc/load; ls t/e1; ls t/e2 2>&1 | grep -o 'No such'; head -n 1 ../.dc/errors | grep -o 'line 2'`,
			"bash: line 2: printf: write error: Invalid argument\nt/e1\nNo such\nline 2",
		},
		{`printf 'g//h\tv\n' > t/.dc/load; head -n 1 ../.dc/errors | grep -o 'lines 1 to 1'`, "bash: line 2: printf: write error: Invalid argument\nlines 1 to 1"},
		// A line goes on after others have closed the descriptor that they inherited; its end may be the end of the file.
		{`mkdir u; exec 3>u/.dc/load; printf 'i' >&3; /bin/true; printf '1\tv' >&3; (:); ls u/i u/i1 2>&1 | grep -c 'No such'; printf 'w\ni2\tlast' >&3; /bin/true; exec 3>&-; cat u/i1 u/i2`, "2\nvwlast"},
		{`printf 'half' > u/.dc/load; head -n 1 ../.dc/errors | grep -o 'line 1 .*neither'; printf '' > u/.dc/load`, "line 1 (all before are loaded) u: neither"},
		{`exec 3<>t/.dc/scan; echo 'prefix=n0000 limit=2 format=tsv' >&3; cat <&3`, "n00001\tv1\nn00002\tv2"},
		{`exec 3<>t/.dc/scan; echo 'reverse limit=1 keys-only format=tsv' >&3; cat <&3`, "n05000"},
		{`exec 3<>t/.dc/scan; echo 'from=b to=n00002 keys-only' >&3; jq -r .key <&3`, "b\nc/d\ne1\nn00001"},
		{`exec 3<>t/.dc/scan; echo 'from' 'limit=x' >&3; cat <&3`, "cat: -: Invalid argument"},
		{`exec 3<>t/.dc/scan; echo 'format=tsv' >&3; cat <&3 | wc -l; grep ^rows t/.dc/stat; jq .rows t/.dc/stat.json`, "5004\nrows 5004\n5004"},
	} {
		expect(t, dir, test.script, test.want)
	}
}

func TestTransactions(t *testing.T) {
	dir, _ := mount(t)
	txn := func(request string) string {
		return `exec 3<>t/.dc/txn; echo '` + request + `' >&3; jq -c .succeeded,.values <&3`
	}
	for _, test := range []struct{ script, want string }{
		{`mkdir t; ` + txn(`{"if":[{"key":"a","absent":true}],"do":[{"put":"a","value":"x"},{"add":"n","by":5}]}`), "true\n{\"n\":\"5\"}"},
		{txn(`{"if":[{"key":"a","absent":true}],"do":[{"put":"a","value":"y"}],"else":[{"add":"n"},{"append":"a","value":"z"}]}`), "false\n{\"n\":\"6\"}"},
		{`cat t/a; echo; ` + txn(`{"if":[{"key":"a","value":"xz"}],"do":[{"delete":"a"},{"add":"n","by":-6}]}`) + `; ls t`, "xz\ntrue\n{\"n\":\"0\"}\nn"},
		{`v=$(getfattr --only-values -n user.dc.version t/n); exec 3<>t/.dc/txn; echo '{"if":[{"key":"n","version":'$v'}],"do":[{"put":"n","value":"9"}]}' >&3; jq .succeeded <&3; cat t/n`, "true\n9"},
		{`exec 3<>t/.dc/txn; echo '{"do":[{"put":"a","add":"b"}]}' >&3; cat <&3`, "cat: -: Invalid argument"},
		{`exec 3<>t/.dc/txn; echo '{"do":[{"put":"q","value":"1"},{"add":"q2"},{"put":"q/r","value":"1"}]}' >&3; cat <&3; ls t`, "cat: -: Not a directory\nn"},
		{`printf '{"do":' | cp /dev/stdin t/.dc/txn 2>&1 | grep -o 'Invalid argument'`, "Invalid argument"},
	} {
		expect(t, dir, test.script, test.want)
	}
}

func TestTimeToLive(t *testing.T) {
	dir, _ := mount(t)
	for _, test := range []struct{ script, want string }{
		{`mkdir t; echo x > t/a; getfattr --only-values -n user.dc.ttl t/a 2>&1 | grep -o 'No such attribute'`, "No such attribute"},
		{`setfattr -n user.dc.ttl -v 1h t/a; getfattr --only-values -n user.dc.ttl t/a | cut -c 1-3; echo y >> t/a; getfattr --only-values -n user.dc.ttl t/a | cut -c 1-3; mv t/a t/b; getfattr --only-values -n user.dc.ttl t/b | cut -c 1-3`, "59m\n59m\n59m"},
		{`echo x > t/b; getfattr -n user.dc.ttl t/b 2>&1 | grep -o 'No such attribute'; setfattr -n user.dc.ttl -v 300ms t/b; until [ ! -e t/b ]; do sleep 0.05; done; cat t/b 2>&1`, "No such attribute\ncat: t/b: No such file or directory"},
		{`cat t/.dc/ctl; echo ttl 1s > t/.dc/ctl; cat t/.dc/ctl; echo 1 > t/s; until [ ! -e t/s ]; do sleep 0.05; done; echo ttl 1h > t/.dc/ctl; echo 2 > t/p; echo 3 > t/q; setfattr -x user.dc.ttl t/p; for r in t/p t/q; do getfattr --only-values -n user.dc.ttl $r 2>&1 | cut -c 1-3; done; echo ttl unlimited > t/.dc/ctl`, "ttl unlimited\nttl 1s\nt/p\n59m"},
		{`for v in 5 -1h never '' 99999999d; do setfattr -n user.dc.ttl -v "$v" t/p 2>&1 | grep -c Invalid; done; echo ttl x > t/.dc/ctl; head -n 1 ../.dc/errors | grep -o 'say 7d'`, "1\n1\n1\n1\n1\nbash: line 2: echo: write error: Invalid argument\nsay 7d"},
		{`mkdir t/d; setfattr -n user.dc.ttl -v 1h t/d 2>&1 | grep -o 'Is a directory\|not supported'`, "not supported"},
	} {
		expect(t, dir, test.script, test.want)
	}
}
