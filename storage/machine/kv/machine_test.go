package kv

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/storagetest"
)

const table = 7

// do applies one operation.
func do(run *storagetest.Run, op any) (*command.KVResult, error) {
	body, err := Command(op)
	if err != nil {
		panic(err)
	}
	out, err := run.Apply(body)
	if err != nil {
		return nil, err
	}
	res := &command.KVResult{}
	return res, proto.Unmarshal(out, res)
}

func put(key, value string) *command.KVPut {
	return &command.KVPut{Table: table, Key: []byte(key), Data: []byte(value)}
}

func must(t *testing.T, run *storagetest.Run, ops ...any) *command.KVResult {
	t.Helper()
	var last *command.KVResult
	for _, op := range ops {
		res, err := do(run, op)
		if err != nil {
			t.Fatalf("%T: %v", op, err)
		}
		last = res
	}
	return last
}

func value(t *testing.T, run *storagetest.Run, key string) (got string, ok bool) {
	t.Helper()
	err := run.View(func(r storage.Reader) error {
		if row := Row(r, table, []byte(key)); row != nil && !row.Dir {
			got, ok = string(row.Value), true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, ok
}

func names(t *testing.T, run *storagetest.Run, dir string, page int) (out []string) {
	t.Helper()
	err := run.View(func(r storage.Reader) error {
		after := []byte(nil)
		for {
			entries := List(r, table, []byte(dir), after, page)
			for _, e := range entries {
				name := string(e.Key)
				if e.Row.Dir {
					name += "/"
				}
				out = append(out, name)
				after = e.Key
			}
			if len(entries) < page {
				return nil
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWaysToPut(t *testing.T) {
	how := func(h command.KVHow, off uint64, data string) *command.KVPut {
		return &command.KVPut{Table: table, Key: []byte("k"), How: h, Offset: off, Data: []byte(data)}
	}
	tests := []struct {
		name string
		put  *command.KVPut
		want string
	}{
		{"replace", how(command.KVHow_KV_HOW_REPLACE, 0, "new"), "new"},
		{"append", how(command.KVHow_KV_HOW_APPEND, 0, "+"), "hello+"},
		{"patch inside", how(command.KVHow_KV_HOW_PATCH, 1, "E"), "hEllo"},
		{"patch over the end", how(command.KVHow_KV_HOW_PATCH, 4, "O!"), "hellO!"},
		{"patch past the end", how(command.KVHow_KV_HOW_PATCH, 7, "x"), "hello\x00\x00x"},
		{"cut", how(command.KVHow_KV_HOW_RESIZE, 2, ""), "he"},
		{"extend", how(command.KVHow_KV_HOW_RESIZE, 6, ""), "hello\x00"},
		{"touch", how(command.KVHow_KV_HOW_TOUCH, 0, ""), "hello"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run := storagetest.New(New())
			must(t, run, put("k", "hello"), tt.put)
			if got, _ := value(t, run, "k"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("x", dc.MaxNameBytes+1)
	tests := []struct {
		name string
		op   any
		want dc.Kind
	}{
		{"empty key", put("", "v"), dc.Invalid},
		{"empty segment", put("a//b", "v"), dc.Invalid},
		{"leading slash", put("/a", "v"), dc.Invalid},
		{"long segment", put(long, "v"), dc.NameTooLong},
		{"long key", put(strings.Repeat("abc/", 1100)+"x", "v"), dc.NameTooLong},
		{"large value", put("big", strings.Repeat("x", dc.MaxValueBytes+1)), dc.TooLarge},
		{"large append", &command.KVPut{Table: table, Key: []byte("row"), How: command.KVHow_KV_HOW_APPEND, Data: make([]byte, dc.MaxValueBytes)}, dc.TooLarge},
		{"far patch", &command.KVPut{Table: table, Key: []byte("row"), How: command.KVHow_KV_HOW_PATCH, Offset: dc.MaxValueBytes, Data: []byte("x")}, dc.TooLarge},
		{"exclusive over a row", &command.KVPut{Table: table, Key: []byte("row"), Exclusive: true}, dc.Exists},
		{"exclusive over a directory", &command.KVPut{Table: table, Key: []byte("dir"), Exclusive: true}, dc.IsDir},
		{"row over a directory", put("dir", "v"), dc.IsDir},
		{"row below a row", put("row/col", "v"), dc.NotDir},
		{"must exist", &command.KVPut{Table: table, Key: []byte("none"), MustExist: true}, dc.NotFound},
		{"another row than opened", &command.KVPut{Table: table, Key: []byte("row"), IfCreated: 999}, dc.Stale},
		{"remove nothing", &command.KVRemove{Table: table, Key: []byte("none")}, dc.NotFound},
		{"unlink a directory", &command.KVRemove{Table: table, Key: []byte("dir")}, dc.IsDir},
		{"rmdir a row", &command.KVRemove{Table: table, Key: []byte("row"), Dir: true}, dc.NotDir},
		{"rmdir with columns", &command.KVRemove{Table: table, Key: []byte("dir"), Dir: true}, dc.NotEmpty},
		{"mkdir over a row", &command.KVMkdir{Table: table, Key: []byte("row")}, dc.Exists},
		{"mkdir over implied", &command.KVMkdir{Table: table, Key: []byte("dir")}, dc.Exists},
		{"mkdir below a row", &command.KVMkdir{Table: table, Key: []byte("row/d")}, dc.NotDir},
		{"rename nothing", &command.KVRename{Table: table, From: []byte("none"), To: []byte("x")}, dc.NotFound},
		{"rename a directory over a row", &command.KVRename{Table: table, From: []byte("dir"), To: []byte("row")}, dc.NotDir},
		{"rename a directory into itself", &command.KVRename{Table: table, From: []byte("dir"), To: []byte("dir/x")}, dc.Invalid},
		{"rename a directory below a row", &command.KVRename{Table: table, From: []byte("dir"), To: []byte("row/x")}, dc.NotDir},
		{"rename a directory over a full one", &command.KVRename{Table: table, From: []byte("dir"), To: []byte("full")}, dc.NotEmpty},
		{"rename a directory, no-replace", &command.KVRename{Table: table, From: []byte("dir"), To: []byte("full"), NoReplace: true}, dc.Exists},
		{"rename a large directory", &command.KVRename{Table: table, From: []byte("large"), To: []byte("x")}, dc.TooLarge},
		{"rename over a directory", &command.KVRename{Table: table, From: []byte("row"), To: []byte("dir")}, dc.IsDir},
		{"rename below itself", &command.KVRename{Table: table, From: []byte("row"), To: []byte("row/x")}, dc.NotDir},
		{"rename no-replace", &command.KVRename{Table: table, From: []byte("row"), To: []byte("other"), NoReplace: true}, dc.Exists},
		{"add to text", &command.KVTxn{Table: table, Then: []*command.KVAction{{Key: []byte("row"), Act: &command.KVAction_Add{Add: 1}}}}, dc.Invalid},
		{"drop with rows", &command.KVDrop{Table: table, OnlyIfEmpty: true}, dc.NotEmpty},
		{"sweep a live table", &command.KVSweep{Table: table}, dc.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run := storagetest.New(New())
			must(t, run, put("row", "v"), put("other", "v"), put("dir/col", "v"), put("full/col", "v"))
			many := &command.KVLoad{Table: table}
			for i := range dc.MaxKVMove + 1 {
				many.Rows = append(many.Rows, &command.KVPair{Key: fmt.Appendf(nil, "large/%d", i)})
			}
			must(t, run, many)
			before := run.Dump()
			if _, err := do(run, tt.op); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if diff := cmp.Diff(run.Dump(), before); diff != "" {
				t.Errorf("a refused command changed rows:\n%s", diff)
			}
		})
	}
}

func TestKeysSortAsPaths(t *testing.T) {
	run := storagetest.New(New())
	must(t, run, put("a-b", "1"), put("a/x", "2"), put("a/b/c", "3"), put("ab", "4"), put("Z", "5"), put("nul\x00l", "6"))
	if diff := cmp.Diff(names(t, run, "", 2), []string{"Z", "a/", "a-b", "ab", "nul\x00l"}); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(names(t, run, "a", 1), []string{"b/", "x"}); diff != "" {
		t.Error(diff)
	}
	var keys []string
	_ = run.View(func(r storage.Reader) error {
		for e := range Scan(r, table, ScanSpec{Prefix: []byte("a")}) {
			keys = append(keys, string(e.Key))
		}
		return nil
	})
	if diff := cmp.Diff(keys, []string{"a/b/c", "a/x", "a-b", "ab"}); diff != "" {
		t.Error(diff)
	}
}

func TestDirectoriesEndByRmdirOnly(t *testing.T) {
	run := storagetest.New(New())
	must(t, run, put("d/e/x", "1"), &command.KVRemove{Table: table, Key: []byte("d/e/x")})
	if diff := cmp.Diff(names(t, run, "d", 10), []string{"e/"}); diff != "" {
		t.Error(diff)
	}
	must(t, run, &command.KVRemove{Table: table, Key: []byte("d/e"), Dir: true}, &command.KVRemove{Table: table, Key: []byte("d"), Dir: true})
	if got := names(t, run, "", 10); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestADirectoryMovesWithAllBelowIt(t *testing.T) {
	run := storagetest.New(New())
	must(t, run,
		put("p/d/x", "1"), put("p/d/e/y", "2"), put("p-d", "3"), &command.KVMkdir{Table: table, Key: []byte("p/d/empty")}, &command.KVMkdir{Table: table, Key: []byte("q")},
		&command.KVRename{Table: table, From: []byte("p/d"), To: []byte("q")})
	for dir, want := range map[string][]string{"": {"p/", "p-d", "q/"}, "p": nil, "q": {"e/", "empty/", "x"}, "q/e": {"y"}} {
		if diff := cmp.Diff(names(t, run, dir, 10), want); diff != "" {
			t.Errorf("%q: %s", dir, diff)
		}
	}
	if got, _ := value(t, run, "q/e/y"); got != "2" {
		t.Errorf("q/e/y is %q", got)
	}
	_ = run.View(func(r storage.Reader) error {
		if st, _ := Totals(r, table); st.Rows != 3 {
			t.Errorf("%d rows, want 3", st.Rows)
		}
		return nil
	})
}

func TestTxn(t *testing.T) {
	run := storagetest.New(New())
	v := must(t, run, put("a", "1\n")).Revision
	add := &command.KVTxn{Table: table, Conditions: []*command.KVCondition{{Key: []byte("a"), Version: &v}, {Key: []byte("b"), Absent: true}}, Then: []*command.KVAction{
		{Key: []byte("a"), Act: &command.KVAction_Add{Add: 41}},
		{Key: []byte("b"), Act: &command.KVAction_Put{Put: []byte("new")}},
		{Key: []byte("b"), Act: &command.KVAction_Append{Append: []byte("er")}},
	}, Otherwise: []*command.KVAction{{Key: []byte("c"), Act: &command.KVAction_Put{Put: []byte("no")}}}}
	res := must(t, run, add)
	if !res.Succeeded || string(res.Values[0].Value) != "42\n" {
		t.Errorf("got %v", res)
	}
	if got, _ := value(t, run, "b"); got != "newer" {
		t.Errorf("b is %q", got)
	}
	if res := must(t, run, add); res.Succeeded {
		t.Error("the conditions held twice")
	}
	if _, ok := value(t, run, "c"); !ok {
		t.Error("the other actions were not done")
	}
}

func TestADroppedTableAnswersNotFoundAndIsSwept(t *testing.T) {
	run := storagetest.New(New())
	var rows []*command.KVPair
	for i := range 1200 {
		rows = append(rows, &command.KVPair{Key: fmt.Appendf(nil, "k%d", i), Value: []byte("v")})
	}
	must(t, run, &command.KVLoad{Table: table, Rows: rows}, &command.KVPut{Table: 8, Key: []byte("other"), Data: []byte("v")}, &command.KVDrop{Table: table})
	if _, err := do(run, put("k", "v")); !errors.Is(err, dc.NotFound) {
		t.Errorf("put: %v", err)
	}
	if ev := run.Events(); len(ev) != 1 || ev[0] != (Dropped{Table: table}) {
		t.Errorf("events %v", ev)
	}
	steps := 0
	for more := true; more; steps++ {
		more = must(t, run, &command.KVSweep{Table: table}).More
	}
	if steps != 3 {
		t.Errorf("%d steps, want 3 of %d rows", steps, sweepRows)
	}
	_ = run.View(func(r storage.Reader) error {
		if left := Unswept(r, 0, 10); len(left) != 0 {
			t.Errorf("unswept: %v", left)
		}
		if Row(r, 8, []byte("other")) == nil {
			t.Error("the sweep took a row of another table")
		}
		return nil
	})
}

// TestRandomHistories compares the machine with a map.
func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		run := storagetest.New(New())
		model := map[string]string{}
		ends := map[string]int64{} // by key; rows that are not in it stay
		ttl := int64(0)            // of the table
		replaced := func(k string) {
			if delete(ends, k); ttl > 0 {
				ends[k] = run.Clock() + ttl
			}
		}
		key := rapid.SampledFrom([]string{"a", "b", "a-b", "d/x", "d/y", "d/e/z", "q%2F", "\x00"})
		val := rapid.StringN(0, 20, 40)
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				k, v := key.Draw(rt, "key"), val.Draw(rt, "value")
				if _, err := do(run, put(k, v)); err != nil {
					rt.Fatal(err)
				}
				model[k] = v
				replaced(k)
			},
			"append": func(rt *rapid.T) {
				k, v := key.Draw(rt, "key"), val.Draw(rt, "value")
				if _, err := do(run, &command.KVPut{Table: table, Key: []byte(k), How: command.KVHow_KV_HOW_APPEND, Data: []byte(v)}); err != nil {
					rt.Fatal(err)
				}
				if _, ok := model[k]; !ok {
					replaced(k)
				}
				model[k] += v
			},
			"ttl": func(rt *rapid.T) {
				k, ms := key.Draw(rt, "key"), rapid.Int64Range(0, 3000).Draw(rt, "ms")
				_, err := do(run, &command.KVSetAttr{Table: table, Key: []byte(k), TtlMs: &ms})
				if _, ok := model[k]; ok != (err == nil) {
					rt.Fatalf("ttl of %q: %v", k, err)
				} else if !ok {
					return
				}
				if delete(ends, k); ms > 0 {
					ends[k] = run.Clock() + ms
				}
			},
			"table's ttl": func(rt *rapid.T) {
				ttl = rapid.SampledFrom([]int64{0, 1000, 5000}).Draw(rt, "ms")
				if _, err := do(run, &command.KVSetTable{Table: table, TtlMs: &ttl}); err != nil {
					rt.Fatal(err)
				}
			},
			"time": func(rt *rapid.T) {
				run.SetClock(run.Clock() + rapid.Int64Range(0, 2000).Draw(rt, "ms"))
				if _, err := do(run, &command.KVExpire{}); err != nil {
					rt.Fatal(err)
				}
				for k, at := range ends {
					if at <= run.Clock() {
						delete(ends, k)
						delete(model, k)
					}
				}
			},
			"remove": func(rt *rapid.T) {
				k := key.Draw(rt, "key")
				_, err := do(run, &command.KVRemove{Table: table, Key: []byte(k)})
				if _, ok := model[k]; ok != (err == nil) {
					rt.Fatalf("remove %q: %v", k, err)
				}
				delete(model, k)
				delete(ends, k)
			},
			"rename": func(rt *rapid.T) {
				from, to := key.Draw(rt, "from"), key.Draw(rt, "to")
				_, err := do(run, &command.KVRename{Table: table, From: []byte(from), To: []byte(to)})
				_, ok := model[from]
				if ok != (err == nil) {
					rt.Fatalf("rename %q to %q: %v", from, to, err)
				}
				if ok {
					move(model, from, to)
					if from != to {
						delete(ends, to)
						move(ends, from, to)
					}
				}
			},
			"rename dir": func(rt *rapid.T) {
				dirs := rapid.SampledFrom([]string{"d", "d/e", "m", "m/n"})
				from, to := dirs.Draw(rt, "from"), dirs.Draw(rt, "to")
				_, err := do(run, &command.KVRename{Table: table, From: []byte(from), To: []byte(to)})
				if err != nil || from == to {
					return // the table of refusals says when
				}
				for k := range maps.Clone(model) {
					if rest, ok := strings.CutPrefix(k, from+"/"); ok {
						move(model, k, to+"/"+rest)
						move(ends, k, to+"/"+rest)
					}
				}
			},
			"": func(rt *rapid.T) {
				compare(rt, run, model)
				next := int64(0)
				for _, at := range ends {
					if next == 0 || at < next {
						next = at
					}
				}
				_ = run.View(func(r storage.Reader) error {
					if got := NextExpiry(r); got != next {
						rt.Fatalf("the next row goes at %d, want %d: %v", got, next, ends)
					}
					return nil
				})
			},
		})
	})
}

// move takes what m has of a key to another.
func move[V any](m map[string]V, from, to string) {
	if v, ok := m[from]; ok {
		delete(m, from)
		m[to] = v
	}
}

func compare(t *rapid.T, run *storagetest.Run, model map[string]string) {
	got := map[string]string{}
	var order []string
	bytes := uint64(0)
	_ = run.View(func(r storage.Reader) error {
		for e := range Scan(r, table, ScanSpec{}) {
			got[string(e.Key)] = string(e.Row.Value)
			order = append(order, string(e.Key))
			bytes += uint64(len(e.Key) + len(e.Row.Value))
		}
		if st, _ := Totals(r, table); st.Rows != uint64(len(model)) || st.Bytes != bytes {
			t.Fatalf("totals %d rows, %d bytes; there are %d, %d", st.Rows, st.Bytes, len(model), bytes)
		}
		return nil
	})
	if !maps.Equal(got, model) {
		t.Fatalf("rows %v, want %v", got, model)
	}
	if !sort.SliceIsSorted(order, func(i, j int) bool {
		return slices.Compare(strings.Split(order[i], "/"), strings.Split(order[j], "/")) < 0
	}) {
		t.Fatalf("scan order %q", order)
	}
}

// More rows than one command removes go in several, those of a dropped table among them.
func TestManyRowsExpire(t *testing.T) {
	run := storagetest.New(New())
	ttl := int64(1000)
	must(t, run, &command.KVSetTable{Table: table, TtlMs: &ttl}, &command.KVSetTable{Table: 8, TtlMs: &ttl})
	for i := range expireRows {
		must(t, run, put(fmt.Sprint("k", i), "v"), &command.KVPut{Table: 8, Key: fmt.Append(nil, "k", i)})
	}
	must(t, run, &command.KVDrop{Table: 8})
	run.SetClock(run.Clock() + 999)
	if must(t, run, &command.KVExpire{}); len(names(t, run, "", 1000)) != expireRows {
		t.Error("rows went early")
	}
	run.SetClock(run.Clock() + 1)
	if r := must(t, run, &command.KVExpire{}); !r.More {
		t.Error("all went at once")
	}
	if r := must(t, run, &command.KVExpire{}); r.More || len(names(t, run, "", 1000)) != 0 {
		t.Errorf("rows are left: %v, %q", r, names(t, run, "", 1000))
	}
	for _, bad := range []int64{-1, dc.MaxKVTTL.Milliseconds() + 1} {
		if _, err := do(run, &command.KVSetTable{Table: table, TtlMs: &bad}); !errors.Is(err, dc.Invalid) {
			t.Errorf("a time to live of %d ms: %v", bad, err)
		}
	}
	must(t, run, &command.KVMkdir{Table: table, Key: []byte("d")})
	if _, err := do(run, &command.KVSetAttr{Table: table, Key: []byte("d"), TtlMs: &ttl}); !errors.Is(err, dc.IsDir) {
		t.Errorf("a directory with a time to live: %v", err)
	}
}
