package lock_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/lock"
	"missingos/storage/storagetest"
)

// snapshot is the tree as lists and values, at a revision or (0) now.
func snapshot(r storage.Reader, at dc.Revision) string {
	var b strings.Builder
	var walk func(dir string)
	walk = func(dir string) {
		for after := ""; ; {
			page := lock.List(r, dir, after, 2) // small pages: they must join
			if at != 0 {
				page = lock.ListAt(r, dir, after, 2, at)
			}
			for _, f := range page {
				path := strings.TrimPrefix(dir+"/"+f.Path, "/")
				value := string(lock.Value(r, path))
				if at != 0 {
					value = string(lock.At(r, path, at).GetValue())
				}
				fmt.Fprintf(&b, "%s dir=%v version=%d size=%d mode=%o %q\n", path, f.Dir, f.Version, f.Size, f.Mode, value)
				if f.Dir {
					walk(path)
				}
				after = f.Path
			}
			if len(page) < 2 {
				return
			}
		}
	}
	walk("")
	return b.String()
}

// Random changes; after each revision the whole tree is noted, and every retained revision must read back as it was noted, also after
// compaction, which must leave no index rows behind.
func TestEveryRetainedRevisionReadsAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := storagetest.New(lock.New())
		noted := map[dc.Revision]string{}
		compacted := dc.Revision(0)
		revision := func() (rev dc.Revision) {
			_ = m.View(func(r storage.Reader) error { rev = dc.Revision(lock.Totals(r).Revision); return nil })
			return rev
		}
		apply := func(op any) {
			body, err := proto.Marshal(lock.Command(op))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = m.Apply(body) // many are refused
			_ = m.View(func(r storage.Reader) error { noted[dc.Revision(lock.Totals(r).Revision)] = snapshot(r, 0); return nil })
		}
		path := rapid.SampledFrom([]string{"a", "b", "a!", "d", "d/x", "d/y", "d/e", "d/e/z", "dx"})
		value := rapid.SampledFrom([]string{"", "1", "22", "\x00\xff"})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			p := path.Draw(t, "path")
			switch rapid.IntRange(0, 8).Draw(t, "what") {
			case 0:
				apply(&command.LockCreate{Path: p, Dir: true, Mode: 0o755})
			case 1:
				apply(&command.LockRemove{Path: p})
			case 2:
				apply(&command.LockRemove{Path: p, Dir: true})
			case 3:
				apply(&command.LockRename{From: p, To: path.Draw(t, "to")})
			case 4:
				mode := uint32(rapid.SampledFrom([]int{0o600, 0o640}).Draw(t, "mode"))
				apply(&command.LockSetAttr{Path: p, Mode: &mode})
			case 5:
				q := path.Draw(t, "second")
				apply(&command.LockTxn{Then: []*command.LockTxnOp{
					{Kind: command.LockTxnOp_KIND_PUT, Path: p, Value: []byte("t1")},
					{Kind: command.LockTxnOp_KIND_DELETE, Path: q},
					{Kind: command.LockTxnOp_KIND_PUT, Path: p, Value: []byte("t2")},
				}})
			case 6:
				if rev := revision(); rev > 0 {
					compacted = max(compacted, dc.Revision(rapid.Uint64Range(0, uint64(rev)).Draw(t, "through")))
					apply(&command.LockCompact{Through: uint64(compacted)})
				}
			default:
				apply(&command.LockPut{Path: p, Value: []byte(value.Draw(t, "value")), Append: rapid.Bool().Draw(t, "append")})
			}
		}
		_ = m.View(func(r storage.Reader) error {
			now := dc.Revision(lock.Totals(r).Revision)
			for rev := dc.Revision(1); rev <= now; rev++ {
				err := lock.Past(r, rev)
				if rev < compacted && rev != now {
					if dc.KindOf(err) != dc.Stale {
						t.Fatalf("revision %d of %d, compacted up to %d: %v", rev, now, compacted, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("revision %d of %d, compacted up to %d: %v", rev, now, compacted, err)
				}
				if got, want := snapshot(r, rev), noted[rev]; got != want {
					t.Fatalf("revision %d of %d:\n%swant\n%s", rev, now, got, want)
				}
			}
			if dc.KindOf(lock.Past(r, now+1)) != dc.Invalid {
				t.Fatal("the future can be read")
			}
			for k := range r.Scan(storage.Span{Start: []byte("p"), End: []byte("q"), KeysOnly: true}) {
				if rev := dc.Revision(k[len(k)-1]); rev <= compacted {
					t.Fatalf("index row %q is left of revision %d, compacted up to %d", k, rev, compacted)
				}
			}
			return nil
		})
	})
}

// A log of version 1 has no past to read; it begins with the first change of version 2, and a late change of version 1 ends it.
func TestThePastBeginsWithTheVersionThatNotesIt(t *testing.T) {
	m := storagetest.New(lock.New())
	put := func(version uint32, value string) {
		t.Helper()
		c := lock.Command(&command.LockPut{Path: "f", Value: []byte(value)})
		c.Version = version
		body, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Apply(body); err != nil {
			t.Fatal(err)
		}
	}
	readable := func() (revs []int) {
		_ = m.View(func(r storage.Reader) error {
			for rev := range lock.Totals(r).Revision {
				if lock.Past(r, dc.Revision(rev+1)) == nil {
					revs = append(revs, int(rev+1))
				}
			}
			return nil
		})
		return revs
	}
	put(1, "one")
	put(1, "two")
	if got := readable(); !slices.Equal(got, []int{2}) {
		t.Errorf("of version 1: %v, want the present only", got)
	}
	put(2, "three")
	put(2, "four")
	if got := readable(); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("from version 2 on: %v", got)
	}
	_ = m.View(func(r storage.Reader) error {
		if f := lock.At(r, "f", 2); string(f.GetValue()) != "two" || f.Version != 2 {
			t.Errorf("at 2: %v", f)
		}
		return nil
	})
	put(1, "five")
	if got := readable(); !slices.Equal(got, []int{5}) {
		t.Errorf("after a late change of version 1: %v", got)
	}
}
