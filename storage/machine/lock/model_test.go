package lock_test

import (
	"fmt"
	"slices"
	"sort"
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

// The model: plain maps and slices that do what the commands should.
type (
	modelFile struct {
		dir   bool
		value string
	}
	modelHold struct {
		session, owner uint64
		exclusive      bool
	}
	modelLock struct {
		holders, queue []modelHold
		freeAt         int64
	}
	model struct {
		files    map[string]modelFile
		locks    map[string]*modelLock
		sessions map[uint64]bool
		fence    uint64 // the last one granted
	}
)

var (
	modelDirs  = []string{"", "d", "d/e"}
	modelNames = []string{"a", "b", "d", "e"}
	modelLocks = []string{"l", "d/l"}
)

func (m *model) parentOK(path string) dc.Kind {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return 0
	}
	switch p, ok := m.files[path[:i]]; {
	case !ok:
		return dc.NotFound
	case !p.dir:
		return dc.NotDir
	}
	return 0
}

func (m *model) hasChildren(path string) bool {
	for p := range m.files {
		if strings.HasPrefix(p, path+"/") {
			return true
		}
	}
	return false
}

func (m *model) put(path, value string, extend bool) dc.Kind {
	f, ok := m.files[path]
	if ok && f.dir {
		return dc.IsDir
	}
	if k := m.parentOK(path); !ok && k != 0 {
		return k
	}
	if extend {
		value = f.value + value
	}
	m.files[path] = modelFile{value: value}
	return 0
}

func (m *model) create(path string, dir, exclusive bool) dc.Kind {
	if k := m.parentOK(path); k != 0 {
		return k
	}
	if f, ok := m.files[path]; ok {
		switch {
		case exclusive || dir:
			return dc.Exists
		case f.dir:
			return dc.IsDir
		}
		return 0
	}
	m.files[path] = modelFile{dir: dir}
	return 0
}

func (m *model) remove(path string, dir bool) dc.Kind {
	f, ok := m.files[path]
	switch {
	case !ok:
		return dc.NotFound
	case dir && !f.dir:
		return dc.NotDir
	case !dir && f.dir:
		return dc.IsDir
	case f.dir && m.hasChildren(path):
		return dc.NotEmpty
	}
	delete(m.files, path)
	return 0
}

func (m *model) rename(from, to string) dc.Kind {
	if k := m.parentOK(to); k != 0 {
		return k
	}
	f, ok := m.files[from]
	t, there := m.files[to]
	switch {
	case !ok:
		return dc.NotFound
	case from == to:
		return 0
	case strings.HasPrefix(to, from+"/"):
		return dc.Invalid
	case there && t.dir && !f.dir:
		return dc.IsDir
	case there && !t.dir && f.dir:
		return dc.NotDir
	case there && t.dir && m.hasChildren(to):
		return dc.NotEmpty
	}
	moved := map[string]modelFile{}
	for p, x := range m.files {
		if p == from || strings.HasPrefix(p, from+"/") {
			moved[to+strings.TrimPrefix(p, from)] = x
			delete(m.files, p)
		}
	}
	delete(m.files, to)
	for p, x := range moved {
		m.files[p] = x
	}
	return 0
}

func (m *model) lock(path string) *modelLock {
	if m.locks[path] == nil {
		m.locks[path] = &modelLock{}
	}
	return m.locks[path]
}

func (l *modelLock) admits(clock int64, exclusive bool) bool {
	switch {
	case clock < l.freeAt:
		return false
	case len(l.holders) == 0:
		return true
	}
	return !l.holders[0].exclusive && !exclusive
}

func index(hs []modelHold, session, owner uint64) int {
	return slices.IndexFunc(hs, func(h modelHold) bool { return h.session == session && h.owner == owner })
}

func (l *modelLock) promote(clock int64) {
	for len(l.queue) > 0 && l.admits(clock, l.queue[0].exclusive) {
		l.holders, l.queue = append(l.holders, l.queue[0]), l.queue[1:]
	}
}

// acquire gives the kind of error, and whether the caller is queued.
func (m *model) acquire(clock int64, path string, h modelHold, wait bool) (kind dc.Kind, queued bool) {
	if !m.sessions[h.session] {
		return dc.Stale, false
	}
	l := m.lock(path)
	before := modelLock{slices.Clone(l.holders), slices.Clone(l.queue), l.freeAt}
	defer func() {
		if kind != 0 {
			*l = before // what is refused changes nothing
		}
	}()
	if i := index(l.holders, h.session, h.owner); i >= 0 {
		switch {
		case l.holders[i].exclusive == h.exclusive:
			return 0, false
		case !h.exclusive || len(l.holders) == 1 && len(l.queue) == 0:
			l.holders[i].exclusive = h.exclusive
			l.promote(clock)
			return 0, false
		case !wait:
			return dc.Again, false
		}
		l.holders = slices.Delete(l.holders, i, i+1)
		l.promote(clock)
	}
	if i := index(l.queue, h.session, h.owner); i >= 0 {
		if wait && l.queue[i].exclusive == h.exclusive {
			return 0, true
		}
		l.queue = slices.Delete(l.queue, i, i+1)
		l.promote(clock)
	}
	switch {
	case len(l.queue) == 0 && l.admits(clock, h.exclusive):
		l.holders = append(l.holders, h)
		return 0, false
	case !wait:
		return dc.Again, false
	}
	l.queue = append(l.queue, h)
	return 0, true
}

func (m *model) release(clock int64, path string, session, owner uint64) {
	l := m.lock(path)
	if i := index(l.holders, session, owner); i >= 0 {
		l.holders = slices.Delete(l.holders, i, i+1)
	} else if i := index(l.queue, session, owner); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
	l.promote(clock)
}

func (m *model) end(clock int64, session uint64, delay int64) {
	if !m.sessions[session] {
		return
	}
	delete(m.sessions, session)
	mine := func(h modelHold) bool { return h.session == session }
	for _, path := range modelLocks {
		l := m.lock(path)
		if slices.ContainsFunc(l.holders, mine) && delay > 0 {
			l.freeAt = clock + delay
		}
		l.holders, l.queue = slices.DeleteFunc(l.holders, mine), slices.DeleteFunc(l.queue, mine)
		l.promote(clock)
	}
}

// A history drives the machine and the model together.
type history struct {
	t    *rapid.T
	run  *storagetest.Run
	m    *model
	cmds [][]byte
	at   []int64
}

func (h *history) do(op any) (*command.LockResult, dc.Kind) {
	body, err := proto.Marshal(lock.Command(op))
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmds, h.at = append(h.cmds, body), append(h.at, h.run.Clock())
	out, err := h.run.Apply(body)
	if err != nil {
		return nil, dc.KindOf(err)
	}
	res := &command.LockResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		h.t.Fatal(err)
	}
	return res, 0
}

func (h *history) want(op any, want dc.Kind) *command.LockResult {
	res, got := h.do(op)
	if got != want {
		h.t.Fatalf("%T %v: got %v, the model says %v", op, op, got, want)
	}
	return res
}

// settle advances every lock whose time has come, as the leader does.
func (h *history) settle() {
	var dues []lock.Due
	_ = h.run.View(func(r storage.Reader) error { dues = lock.Dues(r, 100); return nil })
	for _, d := range dues {
		if d.AtMs <= h.run.Clock() {
			h.want(&command.LockAdvance{Path: d.Path}, 0)
			h.m.lock(d.Path).promote(h.run.Clock())
		}
	}
}

func (h *history) check() {
	_ = h.run.View(func(r storage.Reader) error {
		h.checkFiles(r)
		for _, path := range modelLocks {
			h.checkLock(r, path)
		}
		next := uint64(1)
		lock.History(r, 1, func(x *command.LockHistory) bool {
			if x.Revision != next {
				h.t.Fatalf("history goes on with %d after %d", x.Revision, next-1)
			}
			next++
			return true
		})
		if rev := lock.Totals(r).Revision; rev != next-1 {
			h.t.Fatalf("the store is at revision %d, its history at %d", rev, next-1)
		}
		return nil
	})
}

func (h *history) checkFiles(r storage.Reader) {
	got, size := map[string]modelFile{}, uint64(0)
	var walk func(dir string)
	walk = func(dir string) {
		last := ""
		for _, f := range lock.List(r, dir, "", 100) {
			if f.Path <= last {
				h.t.Fatalf("%q lists %q after %q", dir, f.Path, last)
			}
			last = f.Path
			path := strings.TrimPrefix(dir+"/"+f.Path, "/")
			value := lock.Value(r, path)
			if uint64(len(value)) != f.Size {
				h.t.Fatalf("%s: size %d of %q", path, f.Size, value)
			}
			size += f.Size
			got[path] = modelFile{dir: f.Dir, value: string(value)}
			if f.Dir {
				walk(path)
			}
		}
	}
	walk("")
	if fmt.Sprint(got) != fmt.Sprint(h.m.files) {
		h.t.Fatalf("files\ngot  %v\nwant %v", got, h.m.files)
	}
	if st := lock.Totals(r); st.Files != uint64(len(got)) || st.Bytes != size {
		h.t.Fatalf("totals %v of %d files, %d bytes", st, len(got), size)
	}
}

func (h *history) checkLock(r storage.Reader, path string) {
	l := h.m.lock(path)
	name := func(session, owner uint64, exclusive bool) string {
		return fmt.Sprintf("%d/%d/%v", session, owner, exclusive)
	}
	var got, want []string
	for _, x := range lock.HoldersOf(r, path, 100) {
		got = append(got, name(x.Session, x.Owner, x.Exclusive))
	}
	for _, x := range l.holders {
		want = append(want, name(x.session, x.owner, x.exclusive))
	}
	sort.Strings(want) // holders have no order; keys of small numbers sort as these strings do
	sort.Strings(got)
	got, want = append(got, "|"), append(want, "|")
	waiters, _ := lock.Holds(r, true, nil, 1000)
	for _, x := range waiters {
		if x.Path == path {
			got = append(got, name(x.Session, x.Owner, x.Exclusive))
		}
	}
	for _, x := range l.queue {
		want = append(want, name(x.session, x.owner, x.exclusive))
	}
	if !slices.Equal(got, want) {
		h.t.Fatalf("%s: holders | waiters\ngot  %v\nwant %v", path, got, want)
	}
}

func TestRandomHistoriesAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{t: t, run: storagetest.New(lock.New()), m: &model{files: map[string]modelFile{}, locks: map[string]*modelLock{}, sessions: map[uint64]bool{}}}
		path := rapid.Custom(func(t *rapid.T) string {
			return strings.TrimPrefix(rapid.SampledFrom(modelDirs).Draw(t, "dir")+"/"+rapid.SampledFrom(modelNames).Draw(t, "name"), "/")
		})
		generation := map[uint64]uint64{}
		session := func() uint64 { return rapid.Uint64Range(1, 4).Draw(t, "session") }
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				p, v, extend := path.Draw(t, "path"), rapid.StringN(0, 3, 8).Draw(t, "value"), rapid.Bool().Draw(t, "append")
				h.want(&command.LockPut{Path: p, Value: []byte(v), Append: extend}, h.m.put(p, v, extend))
			},
			"create": func(t *rapid.T) {
				p, dir, excl := path.Draw(t, "path"), rapid.Bool().Draw(t, "dir"), rapid.Bool().Draw(t, "exclusive")
				h.want(&command.LockCreate{Path: p, Dir: dir, Exclusive: excl}, h.m.create(p, dir, excl))
			},
			"remove": func(t *rapid.T) {
				p, dir := path.Draw(t, "path"), rapid.Bool().Draw(t, "dir")
				h.want(&command.LockRemove{Path: p, Dir: dir}, h.m.remove(p, dir))
			},
			"rename": func(t *rapid.T) {
				from, to := path.Draw(t, "from"), path.Draw(t, "to")
				h.want(&command.LockRename{From: from, To: to}, h.m.rename(from, to))
			},
			"open session": func(t *rapid.T) {
				node := rapid.Uint64Range(1, 3).Draw(t, "node")
				if rapid.IntRange(0, 3).Draw(t, "late") == 0 {
					h.want(&command.LockOpenSession{Node: node, Generation: generation[node], TtlMs: 1}, dc.Conflict)
					return
				}
				generation[node]++
				old := uint64(0)
				_ = h.run.View(func(r storage.Reader) error {
					for _, s := range lock.Sessions(r, 0, 100) {
						if s.Node == node {
							old = s.Session
						}
					}
					return nil
				})
				res := h.want(&command.LockOpenSession{Node: node, Generation: generation[node], TtlMs: 1000}, 0)
				h.m.end(h.run.Clock(), old, dc.LockDelay.Milliseconds())
				h.m.sessions[res.Session] = true
			},
			"end session": func(t *rapid.T) {
				s, lost := session(), rapid.Bool().Draw(t, "lost")
				h.want(&command.LockEndSession{Session: s, Lost: lost}, 0)
				delay := dc.LockDelay.Milliseconds()
				if !lost {
					delay = 0
				}
				h.m.end(h.run.Clock(), s, delay)
			},
			"acquire": func(t *rapid.T) {
				p, wait := rapid.SampledFrom(modelLocks).Draw(t, "lock"), rapid.Bool().Draw(t, "wait")
				x := modelHold{session: session(), owner: rapid.Uint64Range(1, 3).Draw(t, "owner"), exclusive: rapid.Bool().Draw(t, "exclusive")}
				kind, queued := h.m.acquire(h.run.Clock(), p, x, wait)
				res := h.want(&command.LockAcquire{Path: p, Session: x.session, Owner: x.owner, Exclusive: x.exclusive, Wait: wait}, kind)
				if kind == 0 && res.Queued != queued {
					t.Fatalf("queued %v, the model says %v", res.Queued, queued)
				}
			},
			"release": func(t *rapid.T) {
				p, s, o := rapid.SampledFrom(modelLocks).Draw(t, "lock"), session(), rapid.Uint64Range(1, 3).Draw(t, "owner")
				h.want(&command.LockRelease{Path: p, Session: s, Owner: o}, 0)
				h.m.release(h.run.Clock(), p, s, o)
			},
			"time passes": func(t *rapid.T) {
				h.run.SetClock(h.run.Clock() + rapid.Int64Range(0, 1500).Draw(t, "ms"))
				h.settle()
			},
			"": func(*rapid.T) { h.fences(); h.check() },
		})
		h.replay()
	})
}

// fences checks that every grant has a larger token than all before it.
func (h *history) fences() {
	for _, ev := range h.run.Events() {
		x, ok := ev.(*command.LockHistory)
		if !ok {
			continue
		}
		for _, e := range x.Events {
			if e.Kind != command.LockEvent_KIND_LOCK {
				continue
			}
			if e.Hold.Fence <= h.m.fence || e.Hold.Fence != x.Revision {
				h.t.Fatalf("fence %d at revision %d after %d", e.Hold.Fence, x.Revision, h.m.fence)
			}
			h.m.fence = e.Hold.Fence
		}
	}
}

// replay applies the same commands to another replica in batches and wants the same rows.
func (h *history) replay() {
	other := storagetest.New(lock.New())
	for i := 0; i < len(h.cmds); {
		other.SetClock(h.at[i])
		var batch [][]byte
		for ; i < len(h.cmds) && len(batch) < 7 && h.at[i] == other.Clock(); i++ {
			batch = append(batch, command.Encode(dc.RequestID{}, h.cmds[i]))
		}
		other.Entry(batch...)
	}
	if got, want := other.Dump(), h.run.Dump(); got != want {
		h.t.Fatalf("two replicas differ:\n%s\n\n%s", got, want)
	}
}
