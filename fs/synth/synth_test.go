package synth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"missingos/srv/dc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func header(uid uint32) *fuse.InHeader {
	h := &fuse.InHeader{}
	h.Uid = uid
	return h
}

func TestStatusForms(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("", 3600))
	pairs := []Pair{
		{"phase", "running"},
		{"desired", 3},
		{"load", 0.5},
		{"whole", 2.0},
		{"since", at},
		{"never", time.Time{}},
		{"lease", 90 * time.Second},
		{"ok", true},
		{"node", dc.NodeID(7)},
		{"label", "a=1"},
		{"label", "b=2"},
		{"groups", []string{"x", "y"}},
		{"none", nil},
		{"text", "two\nlines"},
	}
	wantText := `phase running
desired 3
load 0.50
whole 2
since 2026-01-02T02:04:05Z
never
lease 1m30s
ok true
node n7
label a=1
label b=2
groups x y
none
text two lines
`
	if diff := cmp.Diff(string(StatusText(pairs)), wantText); diff != "" {
		t.Errorf("text (-got +want):\n%s", diff)
	}
	wantJSON := `{"phase":"running","desired":3,"load":0.5,"whole":2,"since":"2026-01-02T02:04:05Z","never":null,"lease":"1m30s","ok":true,` +
		`"node":"n7","label":["a=1","b=2"],"groups":["x","y"],"none":null,"text":"two\nlines"}` + "\n"
	if diff := cmp.Diff(string(StatusJSON(pairs)), wantJSON); diff != "" {
		t.Errorf("json (-got +want):\n%s", diff)
	}
	if !json.Valid(StatusJSON([]Pair{{"bad", func() {}}, {"nan", 0.0}})) {
		t.Error("what JSON cannot hold breaks it")
	}
}

func TestEveryKindHasItsErrno(t *testing.T) {
	eio := map[dc.Kind]bool{dc.Internal: true, dc.Unavailable: true, dc.NotLeader: true, dc.Corrupt: true}
	for k := dc.Kind(0); !strings.HasPrefix(k.String(), "kind "); k++ {
		if got := Errno(k); (got == unix.EIO) != eio[k] {
			t.Errorf("%v: got %v", k, got)
		}
	}
}

func TestRecentErrorsAreBoundedAndPrivate(t *testing.T) {
	d := NewDoor(1, nil)
	as := func(uid uint32) context.Context {
		ctx, stop := d.Context(nil, header(uid), time.Minute)
		t.Cleanup(stop)
		return ctx
	}
	for i := range dc.MaxRecentErrors + 10 {
		if st := d.Status(as(1), dc.Errorf(dc.Invalid, "op", "p", "%d", i)); st != fuse.EINVAL {
			t.Fatalf("got status %v", st)
		}
	}
	for _, quiet := range []error{dc.NoAttr, dc.Again, context.Canceled} {
		d.Status(as(2), quiet)
	}
	d.Status(as(2), dc.Errorf(dc.NoSpace, "put", "k", "the disk is full"))
	if got := d.Errors(as(1)); len(got) != dc.MaxRecentErrors || got[0].Text != fmt.Sprintf("op p: %d", dc.MaxRecentErrors+9) {
		t.Errorf("got %d errors, first %q", len(got), got[0].Text)
	}
	if got := d.Errors(as(2)); len(got) != 1 || got[0].Text != "put k: the disk is full" {
		t.Errorf("got %v", got)
	}
	if got := d.Errors(as(0)); len(got) != dc.MaxRecentErrors || got[0].UID != 2 {
		t.Errorf("root got %d errors, first of %d", len(got), got[0].UID)
	}
	for uid := uint32(100); uid < 100+2*maxErrorUsers; uid++ {
		d.Status(as(uid), dc.Errorf(dc.Busy, "op", "", ""))
	}
	if n := len(d.errors.byUser); n > maxErrorUsers {
		t.Errorf("errors of %d users are kept, the bound is %d", n, maxErrorUsers)
	}
}

func TestInterruptsAndDeadlines(t *testing.T) {
	for _, c := range []struct {
		name      string
		timeout   time.Duration
		interrupt bool
		after     time.Duration
		kind      dc.Kind
	}{
		{"bounded, left alone", dc.OpTimeout, false, dc.OpTimeout, dc.Unavailable},
		{"bounded, interrupted", dc.OpTimeout, true, InterruptGrace, dc.Interrupted},
		{"blocking, interrupted", 0, true, 0, dc.Interrupted},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := NewDoor(1, nil)
				cancel := make(chan struct{})
				ctx, stop := d.Context(cancel, header(1), c.timeout)
				defer stop()
				start := time.Now()
				if c.interrupt {
					close(cancel)
				}
				<-ctx.Done()
				if took := time.Since(start); took != c.after {
					t.Errorf("ended after %v, want %v", took, c.after)
				}
				if got, want := d.Status(ctx, dc.Wrap(ctx.Err(), "op", "")), fuse.Status(Errno(c.kind)); got != want {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		})
	}
}

func TestPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// More than it holds: the writer waits for the reader, nothing is lost, the error comes last.
		const chunk, chunks = 1000, 500
		src := Pipe(t.Context(), func(_ context.Context, emit func([]byte) error) error {
			for i := range chunks {
				if err := emit([]byte(strings.Repeat(string(rune('a'+i%26)), chunk))); err != nil {
					return err
				}
			}
			return dc.Errorf(dc.Stale, "follow", "", "the end")
		})
		synctest.Wait()
		c := newCursor(src)
		var got []byte
		buf := make([]byte, 777)
		for {
			n, err := c.read(t.Context(), buf)
			got = append(got, buf[:n]...)
			if err != nil {
				if !errors.Is(err, dc.Stale) {
					t.Error(err)
				}
				break
			}
		}
		if len(got) != chunk*chunks || got[chunk*30] != 'e' {
			t.Errorf("got %d bytes, want %d", len(got), chunk*chunks)
		}
		c.close()

		// A reader that is interrupted loses nothing, a closed file ends its writer.
		ended := make(chan error, 1)
		src = Pipe(t.Context(), func(ctx context.Context, emit func([]byte) error) error {
			time.Sleep(time.Second)
			_ = emit([]byte("late"))
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})
		c = newCursor(src)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := c.read(ctx, buf); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v from an interrupted read", err)
		}
		if _, err := c.read(withNonBlocking(t.Context()), buf); !errors.Is(err, dc.Again) {
			t.Errorf("got %v from a read that does not want to wait, want %v", err, dc.Again)
		}
		if n, err := c.read(t.Context(), buf); string(buf[:n]) != "late" || err != nil {
			t.Errorf("got %q, %v", buf[:n], err)
		}
		c.close()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the writer ended with %v", err)
		}
	})
}

func TestSources(t *testing.T) {
	i := 0
	for name, src := range map[string]Source{
		"bytes": Bytes([]byte("abc")),
		"pages": Pages(func(context.Context) ([]byte, error) {
			if i++; i > 3 {
				return nil, io.EOF
			}
			return []byte{"abc"[i-1]}, nil
		}),
	} {
		c := newCursor(src)
		var got []byte
		buf := make([]byte, 2)
		for {
			n, err := c.read(t.Context(), buf)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			got = append(got, buf[:n]...)
		}
		if string(got) != "abc" {
			t.Errorf("%s: got %q, want abc", name, got)
		}
	}
}

// names is a directory of rows that come and go.
type names struct {
	Dir
	list []string
}

func (d *names) Key() string { return "names" }

func (d *names) List(_ context.Context, after string, limit int) ([]DirEntry, error) {
	var out []DirEntry
	for _, n := range d.list {
		if n > after && len(out) < limit {
			out = append(out, DirEntry{Name: n, Key: "names/" + n})
		}
	}
	return out, nil
}

// However the kernel takes the entries (in replies of any size, going on from any of them), it sees each once.
func TestListingsContinueFromAnyEntry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{0, 1, 5, dc.MaxScanPage - 1, dc.MaxScanPage, dc.MaxScanPage + 1, 3*dc.MaxScanPage + 7}).Draw(t, "rows")
		d := &names{}
		for i := range n {
			d.list = append(d.list, fmt.Sprintf("%06d", i))
		}
		h := &dirHandle{dir: d, stride: 1}
		var seen []fuse.DirEntry
		pos := uint64(0)
		for {
			take := rapid.IntRange(1, 700).Draw(t, "take")
			var reply []fuse.DirEntry
			err := h.read(context.Background(), pos, func(e fuse.DirEntry) bool {
				if len(reply) == take {
					return false
				}
				reply = append(reply, e)
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(reply) == 0 {
				break
			}
			reply = reply[:rapid.IntRange(1, len(reply)).Draw(t, "used")]
			seen = append(seen, reply...)
			pos = seen[len(seen)-1].Off
		}
		if len(seen) != n+2 {
			t.Fatalf("got %d entries, want %d", len(seen), n+2)
		}
		for i, e := range seen[2:] {
			if e.Name != d.list[i] {
				t.Fatalf("entry %d is %s, want %s", i, e.Name, d.list[i])
			}
		}
		back := seen[rapid.IntRange(0, len(seen)-1).Draw(t, "seekdir")]
		var got string
		err := h.read(context.Background(), back.Off-1, func(e fuse.DirEntry) bool {
			got = e.Name
			return false
		})
		if err != nil || got != back.Name {
			t.Fatalf("after seekdir got %q, %v, want %q", got, err, back.Name)
		}
	})
}

func TestNodesAreForgotten(t *testing.T) {
	root := Static("r", Named{Name: "f", Node: Value("r/f", ValueSpec{Read: func(context.Context) ([]byte, error) { return nil, nil }})})
	s := NewServer(NewDoor(1, nil), root)
	var first fuse.EntryOut
	h := header(0)
	h.NodeId = RootID
	for range 3 {
		if st := s.Lookup(nil, h, "f", &first); st != fuse.OK {
			t.Fatal(st)
		}
	}
	if first.NodeId&IDBit == 0 || first.Ino&IDBit != 0 || first.Ino == 0 {
		t.Errorf("got node id %x and inode number %x", first.NodeId, first.Ino)
	}
	s.Forget(first.NodeId, 2)
	if s.Nodes() != 1 {
		t.Errorf("the node is gone before its last look-up is forgotten")
	}
	s.Forget(first.NodeId, 1)
	if s.Nodes() != 0 || len(s.byKey) != 0 {
		t.Errorf("%d nodes and %d keys are left", s.Nodes(), len(s.byKey))
	}
}

func TestANameOverTheLimitIsToldWithTheLimit(t *testing.T) {
	door := NewDoor(1, nil)
	s := NewServer(door, Static("r"))
	h := header(0)
	h.NodeId = RootID
	ctx, stop := door.Context(nil, h, time.Minute)
	defer stop()
	name := strings.Repeat("x", dc.MaxNameBytes+1)
	calls := map[string]func() fuse.Status{
		"lookup": func() fuse.Status { return s.Lookup(nil, h, name, &fuse.EntryOut{}) },
		"unlink": func() fuse.Status { return s.Unlink(nil, h, name) },
		"rename": func() fuse.Status {
			return s.Rename(nil, &fuse.RenameIn{InHeader: *h, Newdir: RootID}, "a", name)
		},
	}
	for op, call := range calls {
		before := len(door.Errors(ctx))
		if st := call(); st != fuse.Status(unix.ENAMETOOLONG) {
			t.Errorf("%s: got %v, want ENAMETOOLONG", op, st)
		}
		if got := door.Errors(ctx); len(got) != before+1 || !strings.Contains(got[0].Text, "limit of 255 (MaxNameBytes)") {
			t.Errorf("%s: got %v, want a line with the limit", op, got)
		}
	}
}
