package data

import (
	"testing"

	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

func makeFile(t *testing.T, w *world, name string) uint64 {
	t.Helper()
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Name: []byte(name), Mode: file.Regular | 0o644}}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Inode.Ino
}

func TestABlockStaysUntilTheLastFileThatSharesItIsGone(t *testing.T) {
	w := newWorld()
	from, to := makeFile(t, w, "from"), makeFile(t, w, "to")
	l := w.block(make([]byte, 9000))
	put := &command.DataCommit{Ino: from, Blocks: []*command.DataLocation{l}, Pieces: []*command.DataPiece{{Off: 0, Len: 9000, Block: l.Block}}}
	if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: put}}); err != nil {
		t.Fatal(err)
	}
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Clone{Clone: &command.DataClone{From: from, FromOff: 1000, To: to, ToOff: 5, Len: 100_000}}})
	if err != nil || res.Offset != 8000 || res.Inode.Size != 8005 {
		t.Fatalf("%v, %v", res, err)
	}
	held := func() (yes bool) {
		_ = w.run.View(func(rd storage.Reader) error {
			id, _ := file.ParseBlockID(l.Block)
			yes = HeldAt(rd, 0, id, 2)
			return nil
		})
		return yes
	}
	for i, name := range []string{"from", "to"} {
		if !held() {
			t.Fatalf("the block is gone before %s is", name)
		}
		ino := []uint64{from, to}[i]
		for _, c := range []*command.DataCommand{
			{Op: &command.DataCommand_Unlink{Unlink: &command.DataUnlink{Parent: uint64(file.Root), Name: []byte(name)}}},
			{Op: &command.DataCommand_Purge{Purge: &command.DataPurge{Inos: []uint64{ino}}}},
		} {
			if _, err := w.do(c); err != nil {
				t.Fatal(err)
			}
		}
	}
	if held() {
		t.Error("the block is still there")
	}
}

func TestACloneOfManyExtentsTakesSteps(t *testing.T) {
	w := newWorld()
	from, to := makeFile(t, w, "from"), makeFile(t, w, "to")
	const extents = 2500
	for i := range extents {
		l := w.block([]byte("12345678"))
		put := &command.DataCommit{Ino: from, Blocks: []*command.DataLocation{l}, Pieces: []*command.DataPiece{{Off: int64(i) * 10, Len: 8, Block: l.Block}}}
		if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: put}}); err != nil {
			t.Fatal(err)
		}
	}
	done, steps := int64(0), 0
	for ; steps < 10; steps++ {
		res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Clone{Clone: &command.DataClone{From: from, FromOff: done, To: to, ToOff: done, Len: 1 << 30}}})
		if err != nil {
			t.Fatal(err)
		}
		if res.Offset == 0 {
			break
		}
		done += res.Offset
	}
	a, b := w.inode(file.Ino(from)), w.inode(file.Ino(to))
	if steps != 3 || done != a.Size || b.Size != a.Size || b.Extents != a.Extents || b.Allocated != a.Allocated {
		t.Fatalf("%d bytes in %d steps: %v from %v", done, steps, b, a)
	}
}

func TestCommandsOfVersionOneMeanWhatTheyDid(t *testing.T) {
	w := newWorld()
	fifo, err := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Name: []byte("fifo"), Mode: file.Fifo | 0o6755}}})
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(7)
	chown := &command.DataCommand{Version: 1, Caller: &command.DataCaller{}, Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: fifo.Inode.Ino, Uid: &uid}}}
	if _, err := w.run.Apply(encode(chown)); err != nil || w.inode(file.Ino(fifo.Inode.Ino)).Mode&0o6000 != 0o6000 {
		t.Errorf("version 1 cleared set-id bits of a fifo: %v", err)
	}
	if _, err := w.do(chown); err != nil || w.inode(file.Ino(fifo.Inode.Ino)).Mode&0o6000 != 0 {
		t.Errorf("version 2 did not: %v", err)
	}
	label := &command.DataCommand{Version: 1, Caller: &command.DataCaller{}, Op: &command.DataCommand_SetXattr{SetXattr: &command.DataSetXattr{Ino: fifo.Inode.Ino, Name: []byte("security.x")}}}
	if _, err := w.run.Apply(encode(label)); err == nil {
		t.Error("version 1 took a security attribute")
	}
	if _, err := w.do(label); err != nil {
		t.Error(err)
	}
}

func TestAFileWithoutANameGoesUnlessItIsLinked(t *testing.T) {
	w := newWorld()
	nameless := func(linkable bool) uint64 {
		res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Mode: file.Regular | 0o600, Nameless: true, Linkable: linkable}}})
		if err != nil || res.Inode.Nlink != 0 {
			t.Fatalf("%v, %v", res, err)
		}
		return res.Inode.Ino
	}
	link := func(ino uint64) error {
		_, err := w.do(&command.DataCommand{Op: &command.DataCommand_Link{Link: &command.DataLink{Ino: ino, Parent: uint64(file.Root), Name: []byte("f")}}})
		return err
	}
	a, b := nameless(true), nameless(false)
	if err := link(b); err == nil {
		t.Error("the file that may have no name got one")
	}
	if err := link(a); err != nil {
		t.Fatal(err)
	}
	if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Purge{Purge: &command.DataPurge{Inos: []uint64{a, b}}}}); err != nil {
		t.Fatal(err)
	}
	_ = w.run.View(func(rd storage.Reader) error {
		if _, err := Inode(rd, file.Ino(b)); err == nil {
			t.Error("the file without a name is still there")
		}
		if in, err := Inode(rd, file.Ino(a)); err != nil || in.Nlink != 1 || len(Orphans(rd, 0, 0, 10)) != 0 {
			t.Errorf("%v, %v", in, err)
		}
		return nil
	})
}
