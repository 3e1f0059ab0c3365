package data

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/storagetest"
)

// world is a machine beside a plain in-memory filesystem that says what it should hold.
type world struct {
	run    *storagetest.Run
	now    int64
	blocks map[file.BlockID][]byte // what the block stores would hold
	seq    uint64

	dirs  map[file.Ino]map[string]file.Ino
	up    map[file.Ino]file.Ino
	files map[file.Ino]*model
}

type model struct {
	data  []byte
	links int
}

func newWorld() *world {
	return &world{
		run: storagetest.New(New()), now: 1e18, blocks: map[file.BlockID][]byte{},
		dirs: map[file.Ino]map[string]file.Ino{file.Root: {}}, up: map[file.Ino]file.Ino{file.Root: file.Root},
		files: map[file.Ino]*model{},
	}
}

func (w *world) do(c *command.DataCommand) (*command.DataResult, error) {
	w.now++
	c.Version, c.Now = Version, w.now
	if c.Caller == nil {
		c.Caller = &command.DataCaller{}
	}
	body, err := w.run.Apply(encode(c))
	if err != nil {
		return nil, err
	}
	res := &command.DataResult{}
	if err := proto.Unmarshal(body, res); err != nil {
		return nil, err
	}
	return res, nil
}

func (w *world) anyDir(t *rapid.T, label string) file.Ino {
	return rapid.SampledFrom(slices.Sorted(maps.Keys(w.dirs))).Draw(t, label)
}

func (w *world) anyFile(t *rapid.T) file.Ino {
	all := slices.Sorted(maps.Keys(w.files))
	if len(all) == 0 {
		t.Skip("no file yet")
	}
	return rapid.SampledFrom(all).Draw(t, "file")
}

func anyName(t *rapid.T, label string) string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, label)
}

func wantKind(t *rapid.T, err error, kind error) {
	t.Helper()
	if kind == nil && err != nil || kind != nil && !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
}

func (w *world) make(t *rapid.T) {
	dir, name := w.anyDir(t, "dir"), anyName(t, "name")
	isDir, excl := rapid.Bool().Draw(t, "mkdir"), rapid.Bool().Draw(t, "excl")
	mode := uint32(file.Regular | 0o644)
	if isDir {
		mode = file.Dir | 0o755
	}
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{
		Parent: uint64(dir), Name: []byte(name), Mode: mode, Exclusive: excl,
	}}})
	if old, ok := w.dirs[dir][name]; ok {
		if excl || isDir {
			wantKind(t, err, dc.Exists)
			return
		}
		wantKind(t, err, nil)
		if !res.Existed || file.Ino(res.Inode.Ino) != old {
			t.Fatalf("create of an existing name gave %v", res)
		}
		return
	}
	wantKind(t, err, nil)
	ino := file.Ino(res.Inode.Ino)
	w.dirs[dir][name] = ino
	if isDir {
		w.dirs[ino], w.up[ino] = map[string]file.Ino{}, dir
	} else {
		w.files[ino] = &model{links: 1}
	}
}

func (w *world) link(t *rapid.T) {
	ino, dir, name := w.anyFile(t), w.anyDir(t, "dir"), anyName(t, "name")
	_, err := w.do(&command.DataCommand{Op: &command.DataCommand_Link{Link: &command.DataLink{
		Ino: uint64(ino), Parent: uint64(dir), Name: []byte(name),
	}}})
	_, exists := w.dirs[dir][name]
	switch {
	case w.files[ino].links == 0:
		wantKind(t, err, dc.NotFound)
	case exists:
		wantKind(t, err, dc.Exists)
	default:
		wantKind(t, err, nil)
		w.dirs[dir][name] = ino
		w.files[ino].links++
	}
}

func (w *world) unlink(t *rapid.T) {
	dir, name, rmdir := w.anyDir(t, "dir"), anyName(t, "name"), rapid.Bool().Draw(t, "rmdir")
	_, err := w.do(&command.DataCommand{Op: &command.DataCommand_Unlink{Unlink: &command.DataUnlink{
		Parent: uint64(dir), Name: []byte(name), Dir: rmdir,
	}}})
	ino, ok := w.dirs[dir][name]
	sub, isDir := w.dirs[ino]
	switch {
	case !ok:
		wantKind(t, err, dc.NotFound)
	case rmdir && !isDir:
		wantKind(t, err, dc.NotDir)
	case !rmdir && isDir:
		wantKind(t, err, dc.IsDir)
	case rmdir && len(sub) > 0:
		wantKind(t, err, dc.NotEmpty)
	default:
		wantKind(t, err, nil)
		delete(w.dirs[dir], name)
		w.drop(ino)
	}
}

func (w *world) drop(ino file.Ino) {
	if _, isDir := w.dirs[ino]; isDir {
		delete(w.dirs, ino)
		delete(w.up, ino)
		return
	}
	w.files[ino].links--
}

func (w *world) inside(dir, top file.Ino) bool {
	for ; dir != file.Root; dir = w.up[dir] {
		if dir == top {
			return true
		}
	}
	return false
}

func (w *world) rename(t *rapid.T) {
	from, to := w.anyDir(t, "from"), w.anyDir(t, "to")
	name, newName := anyName(t, "name"), anyName(t, "new name")
	flags := rapid.SampledFrom([]uint32{0, 0, RenameNoReplace, RenameExchange}).Draw(t, "flags")
	_, err := w.do(&command.DataCommand{Op: &command.DataCommand_Rename{Rename: &command.DataRename{
		Parent: uint64(from), Name: []byte(name), NewParent: uint64(to), NewName: []byte(newName), Flags: flags,
	}}})
	src, ok := w.dirs[from][name]
	dst, exists := w.dirs[to][newName]
	_, srcDir := w.dirs[src]
	dstSub, dstDir := w.dirs[dst]
	switch {
	case !ok:
		wantKind(t, err, dc.NotFound)
	case flags == RenameExchange && !exists:
		wantKind(t, err, dc.NotFound)
	case flags == RenameNoReplace && exists:
		wantKind(t, err, dc.Exists)
	case exists && src == dst:
		wantKind(t, err, nil)
	case srcDir && w.inside(to, src):
		wantKind(t, err, dc.Invalid)
	case flags == RenameExchange:
		if dstDir && w.inside(from, dst) {
			wantKind(t, err, dc.Invalid)
			return
		}
		wantKind(t, err, nil)
		w.dirs[from][name], w.dirs[to][newName] = dst, src
		if srcDir {
			w.up[src] = to
		}
		if dstDir {
			w.up[dst] = from
		}
	case exists && srcDir && !dstDir:
		wantKind(t, err, dc.NotDir)
	case exists && !srcDir && dstDir:
		wantKind(t, err, dc.IsDir)
	case exists && dstDir && len(dstSub) > 0:
		wantKind(t, err, dc.NotEmpty)
	default:
		wantKind(t, err, nil)
		delete(w.dirs[from], name)
		if exists {
			w.drop(dst)
		}
		w.dirs[to][newName] = src
		if srcDir {
			w.up[src] = to
		}
	}
}

func (m *model) write(off int64, p []byte) {
	if grow := off + int64(len(p)) - int64(len(m.data)); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
	}
	copy(m.data[off:], p)
}

func (w *world) bytes(t *rapid.T, most int) []byte {
	n := rapid.IntRange(1, most).Draw(t, "bytes")
	p := make([]byte, n)
	for i := range p {
		w.seq++
		p[i] = byte(w.seq%255) + 1
	}
	return p
}

func (w *world) block(data []byte) *command.DataLocation {
	w.seq++
	id := file.BlockID{Node: 1, Boot: 1, Seq: w.seq}
	w.blocks[id] = data
	return &command.DataLocation{Block: id.Bytes(), Size: uint32(len(data)), Nodes: []uint64{2, 1, 3}}
}

func (w *world) write(t *rapid.T) {
	ino, off := w.anyFile(t), rapid.Int64Range(0, 40_000).Draw(t, "offset")
	if rapid.Bool().Draw(t, "inline") {
		p := w.bytes(t, dc.InlineFileBytes)
		_, err := w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: &command.DataCommit{
			Ino: uint64(ino), HasInline: true, InlineOff: off, Inline: p,
		}}})
		if errors.Is(err, dc.Conflict) {
			return
		}
		wantKind(t, err, nil)
		w.files[ino].write(off, p)
		return
	}
	p, q := w.bytes(t, 20_000), w.bytes(t, 300)
	l := w.block(slices.Concat(p, q))
	c := &command.DataCommit{Ino: uint64(ino), Blocks: []*command.DataLocation{l}, Pieces: []*command.DataPiece{
		{Off: off, Len: int64(len(p)), Block: l.Block},
		{Off: off + int64(len(p)) + 77, Len: int64(len(q)), Block: l.Block, BlockOff: int64(len(p))},
	}}
	hole := rapid.Bool().Draw(t, "hole")
	if hole {
		c.Pieces = append(c.Pieces, &command.DataPiece{Off: off + 5, Len: 100})
	}
	_, err := w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: c}})
	wantKind(t, err, nil)
	w.files[ino].write(off, p)
	w.files[ino].write(off+int64(len(p))+77, q)
	if hole {
		w.files[ino].write(off+5, make([]byte, 100))
	}
}

func (w *world) appendTo(t *rapid.T) {
	ino := w.anyFile(t)
	p := w.bytes(t, 3000)
	m := w.files[ino]
	c := &command.DataAppend{Ino: uint64(ino), Inline: p}
	if rapid.Bool().Draw(t, "block") {
		var run []byte
		if rapid.Bool().Draw(t, "fold") {
			in := w.inode(ino)
			if len(in.Inline) > 0 && in.InlineOff+int64(len(in.Inline)) == in.Size {
				run, c.Fold, c.FoldLen = m.data[in.InlineOff:], in.Version, int64(len(in.Inline)) // as a reader sees it: extents may hide some
			}
			if rapid.Bool().Draw(t, "late") {
				c.Fold++
			}
		}
		c.Inline, c.Block = nil, w.block(slices.Concat(run, p))
	}
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Append{Append: c}})
	if c.Inline != nil && errors.Is(err, dc.Conflict) {
		return
	}
	wantKind(t, err, nil)
	if res.Offset != int64(len(m.data)) {
		t.Fatalf("appended at %d, want %d", res.Offset, len(m.data))
	}
	m.data = append(m.data, p...)
}

func (w *world) truncate(t *rapid.T) {
	ino, size := w.anyFile(t), rapid.Int64Range(0, 60_000).Draw(t, "size")
	_, err := w.do(&command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: uint64(ino), Size: &size}}})
	wantKind(t, err, nil)
	m := w.files[ino]
	if size < int64(len(m.data)) {
		m.data = m.data[:size:size]
	} else {
		m.data = append(m.data, make([]byte, size-int64(len(m.data)))...)
	}
}

func (w *world) purge(t *rapid.T) {
	var inos []uint64
	_ = w.run.View(func(rd storage.Reader) error {
		for _, i := range Orphans(rd, 0, 0, 100) {
			inos = append(inos, uint64(i))
		}
		return nil
	})
	if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Purge{Purge: &command.DataPurge{Inos: inos}}}); err != nil {
		t.Fatal(err)
	}
	for ino, m := range w.files {
		if m.links == 0 {
			delete(w.files, ino)
		}
	}
}

func (w *world) inode(ino file.Ino) (in *command.DataInode) {
	_ = w.run.View(func(rd storage.Reader) error {
		in, _ = loadInode(rd, ino)
		return nil
	})
	return in
}

// check compares everything and looks for broken invariants.
func (w *world) check(t *rapid.T) {
	_ = w.run.View(func(rd storage.Reader) error {
		var held int64
		refs := map[file.BlockID]int{}
		for ino, m := range w.files {
			held += w.checkFile(t, rd, ino, m, refs)
		}
		for dir, names := range w.dirs {
			w.checkDir(t, rd, dir, names)
		}
		w.checkBlocks(t, rd, refs)
		if _, got := Usage(rd, 0); got != held {
			t.Fatalf("usage says %d bytes, the files hold %d", got, held)
		}
		return nil
	})
}

func (w *world) checkFile(t *rapid.T, rd storage.Reader, ino file.Ino, m *model, refs map[file.BlockID]int) int64 {
	in, ok := loadInode(rd, ino)
	if !ok {
		t.Fatalf("%s is gone", ino)
	}
	if int(in.Nlink) != m.links || in.Size != int64(len(m.data)) {
		t.Fatalf("%s has %d links and %d bytes, want %d and %d", ino, in.Nlink, in.Size, m.links, len(m.data))
	}
	ext, _ := Extents(rd, ino, 0, 1<<20)
	got := make([]byte, in.Size)
	if in.InlineOff < in.Size {
		copy(got[in.InlineOff:], in.Inline)
	}
	held, last := int64(len(in.Inline)), int64(0)
	for _, e := range ext {
		if e.Off < last || e.End() > in.Size {
			t.Fatalf("%s of %d bytes has an extent %+v after offset %d", ino, in.Size, e, last)
		}
		last = e.End()
		copy(got[e.Off:e.End()], w.blocks[e.Block][e.BlockOff:])
		refs[e.Block]++
		held += e.Len
	}
	if !bytes.Equal(got, m.data) {
		t.Fatalf("%s has other content than written", ino)
	}
	if held != in.Allocated || int(in.Extents) != len(ext) {
		t.Fatalf("%s says %d bytes in %d extents, has %d in %d", ino, in.Allocated, in.Extents, held, len(ext))
	}
	links := 0
	for range rd.Scan(prefix(inoKey(kindLink, ino, 0))) {
		links++
	}
	if want := m.links; want > 1 && links != want || want <= 1 && links != 0 {
		t.Fatalf("%s with %d links has %d back links", ino, want, links)
	}
	if m.links > 0 && w.dirs[file.Ino(in.Parent)][string(in.Name)] != ino {
		t.Fatalf("%s says it is %q in %d, where it is not", ino, in.Name, in.Parent)
	}
	return held
}

func (w *world) checkDir(t *rapid.T, rd storage.Reader, dir file.Ino, names map[string]file.Ino) {
	in, ok := loadInode(rd, dir)
	if !ok || file.Ino(in.Parent) != w.up[dir] {
		t.Fatalf("directory %s: %v, want parent %s", dir, in, w.up[dir])
	}
	got := map[string]file.Ino{}
	subs := uint32(0)
	entries, err := List(rd, dir, nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got[string(e.Name)] = file.Ino(e.Inode.Ino)
		if isDir(e.Inode) {
			subs++
		}
	}
	if !maps.Equal(got, names) || in.Nlink != dirLinks+subs {
		t.Fatalf("directory %s with %d links lists %v, want %v", dir, in.Nlink, got, names)
	}
}

func (w *world) checkBlocks(t *rapid.T, rd storage.Reader, refs map[file.BlockID]int) {
	p := key(0, kindBlock, 0)
	for k, v := range rd.Scan(prefix(p)) {
		id, _ := file.ParseBlockID(k[len(p):])
		var row command.DataBlock
		decode("block", v, &row)
		if int(row.Refs) != refs[id] {
			t.Fatalf("block %s counts %d references, has %d", id, row.Refs, refs[id])
		}
		delete(refs, id)
	}
	if len(refs) > 0 {
		t.Fatalf("blocks without a row: %v", refs)
	}
	for _, n := range GarbageNodes(rd, 0) {
		for _, id := range Garbage(rd, 0, n, 1<<20) {
			if HeldAt(rd, 0, id, n) {
				t.Fatalf("block %s is garbage and in use", id)
			}
		}
	}
}

func TestMachineAgreesWithAPlainFilesystem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		t.Repeat(map[string]func(*rapid.T){
			"": w.check, "make": w.make, "make2": w.make, "link": w.link, "unlink": w.unlink, "rename": w.rename, "rename2": w.rename,
			"write": w.write, "write2": w.write, "append": w.appendTo, "truncate": w.truncate, "purge": w.purge,
		})
	})
}

func TestLongTruncateAndPurgeGoInSteps(t *testing.T) {
	w := newWorld()
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Name: []byte("f"), Mode: file.Regular | 0o644}}})
	if err != nil {
		t.Fatal(err)
	}
	ino := res.Inode.Ino
	const extents = 2500
	for i := range extents {
		l := w.block([]byte("12345678"))
		if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: &command.DataCommit{
			Ino: ino, Blocks: []*command.DataLocation{l}, Pieces: []*command.DataPiece{{Off: int64(i) * 10, Len: 8, Block: l.Block}},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	size, steps := int64(4), 0
	for more := true; more; steps++ {
		res, err := w.do(&command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: ino, Size: &size}}})
		if err != nil {
			t.Fatal(err)
		}
		more = res.More
	}
	in := w.inode(file.Ino(ino))
	if steps != 3 || in.Size != 4 || in.Extents != 1 || in.Allocated != 4 {
		t.Fatalf("after %d steps: %v", steps, in)
	}
}

func TestRetriedCommitOfTheSameBlocksKeepsThem(t *testing.T) {
	w := newWorld()
	res, _ := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Name: []byte("f"), Mode: file.Regular | 0o644}}})
	l := w.block(make([]byte, 9000))
	for range 2 {
		if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: &command.DataCommit{
			Ino: res.Inode.Ino, Blocks: []*command.DataLocation{l}, Pieces: []*command.DataPiece{{Off: 0, Len: 9000, Block: l.Block}},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.run.View(func(rd storage.Reader) error {
		if id, _ := file.ParseBlockID(l.Block); !HeldAt(rd, 0, id, 2) || len(GarbageNodes(rd, 0)) != 0 {
			t.Fatalf("the block became garbage:\n%s", w.run.Dump())
		}
		return nil
	})
}

func TestPermissions(t *testing.T) {
	const root, ada, bob = 0, 1001, 1002
	as := func(uid uint32) *command.DataCaller { return &command.DataCaller{Uid: uid, Gid: uid} }
	mk := func(parent uint64, name string, mode uint32) *command.DataCommand {
		return &command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: parent, Name: []byte(name), Mode: mode, Exclusive: true}}}
	}
	w := newWorld()
	must := func(uid uint32, c *command.DataCommand) uint64 {
		t.Helper()
		c.Caller = as(uid)
		res, err := w.do(c)
		if err != nil {
			t.Fatal(err)
		}
		return res.GetInode().GetIno()
	}
	home := must(ada, mk(uint64(file.Root), "ada", file.Dir|0o755))
	secret := must(ada, mk(home, "secret", file.Regular|0o600))
	shared := must(ada, mk(uint64(file.Root), "shared", file.Dir|modeSetGID|0o777))
	perm, zero := uint32(0o777), int64(0)
	now := int64(5)
	var other uint32 = bob
	for _, tt := range []struct {
		name string
		uid  uint32
		c    *command.DataCommand
		want error
	}{
		{"create in another's directory", bob, mk(home, "x", file.Regular|0o644), dc.Denied},
		{"remove from a sticky directory", bob, &command.DataCommand{Op: &command.DataCommand_Unlink{Unlink: &command.DataUnlink{Parent: uint64(file.Root), Name: []byte("ada"), Dir: true}}}, dc.NotOwner},
		{"chmod another's file", bob, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: secret, Mode: &perm}}}, dc.NotOwner},
		{"chown by an owner", ada, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: secret, Uid: &other}}}, dc.NotOwner},
		{"truncate another's file", bob, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: secret, Size: &zero}}}, dc.Denied},
		{"touch another's file", bob, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: secret, Mtime: &now, TimesNow: true}}}, dc.Denied},
		{"set another's times", bob, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: shared, Mtime: &now}}}, dc.NotOwner},
		{"make a device", ada, mk(home, "dev", file.CharDev|0o600), dc.NotOwner},
		{"root may all", root, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: secret, Uid: &other}}}, nil},
	} {
		tt.c.Caller = as(tt.uid)
		if _, err := w.do(tt.c); tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	sub := w.inode(file.Ino(must(bob, mk(shared, "sub", file.Dir|0o755))))
	if sub.Gid != ada || sub.Mode&modeSetGID == 0 {
		t.Errorf("a directory made in a set-gid directory has group %d and mode %o", sub.Gid, sub.Mode)
	}
	tool := must(ada, mk(home, "tool", file.Regular|0o6755))
	must(bob, &command.DataCommand{Op: &command.DataCommand_Commit{Commit: &command.DataCommit{Ino: tool, HasInline: true, Inline: []byte("x")}}})
	if m := w.inode(file.Ino(tool)).Mode; m&(modeSetUID|modeSetGID) != 0 {
		t.Errorf("a write left mode %o", m)
	}
}

func TestKeysOfADirectoryAreItsOwn(t *testing.T) {
	for _, ino := range []file.Ino{2, 0xff, 0x1ff, 1<<52 | 7, 0xfff<<52 | 1<<52 - 1} {
		k := dentryKey(ino, []byte("n"))
		if got := binary.BigEndian.Uint16(k); got != ino.Slot() || inoIn(k) != ino {
			t.Errorf("%v: slot %d, inode %v", ino, got, inoIn(k))
		}
		if end := afterPrefix(inoKey(kindDentry, ino, 0)); bytes.Compare(k, end) >= 0 || bytes.Compare(dentryKey(ino+1, nil), end) < 0 {
			t.Errorf("%v: %s", ino, fmt.Sprintf("range ends at %x", end))
		}
	}
}
