package data

import (
	"slices"
	"testing"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/storagetest"
)

// placed makes a file with one block on nodes 1, 2 and 3.
func placed(t *testing.T) (*world, file.BlockID) {
	t.Helper()
	w := newWorld()
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Name: []byte("f"), Mode: file.Regular | 0o644}}})
	if err != nil {
		t.Fatal(err)
	}
	id := file.BlockID{Node: 1, Boot: 1, Seq: 1}
	_, err = w.do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: &command.DataCommit{
		Ino:    res.Inode.Ino,
		Blocks: []*command.DataLocation{{Block: id.Bytes(), Size: 10, Nodes: []uint64{1, 2, 3}}},
		Pieces: []*command.DataPiece{{Off: 0, Len: 10, Block: id.Bytes()}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return w, id
}

func (w *world) relocate(t *testing.T, until int64, m *command.DataMove) bool {
	t.Helper()
	res, err := w.do(&command.DataCommand{Op: &command.DataCommand_Relocate{Relocate: &command.DataRelocate{Moves: []*command.DataMove{m}, UntilMs: until}}})
	if err != nil || len(res.Moved) != 1 {
		t.Fatal(res, err)
	}
	return res.Moved[0]
}

// state gives the nodes of a block, and those that have yet to delete a copy.
func (w *world) state(t *testing.T, id file.BlockID) (nodes, pending []dc.NodeID) {
	t.Helper()
	if err := w.run.View(func(rd storage.Reader) error {
		h, _ := Held(rd, 0, id)
		nodes = h.Nodes
		for n := range dc.NodeID(10) {
			if AwaitsDeletion(rd, 0, id.Bytes(), n) {
				pending = append(pending, n)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return nodes, pending
}

func TestRelocation(t *testing.T) {
	const soon, past = storagetest.StartClock + 60_000, storagetest.StartClock - 1
	for _, tc := range []struct {
		name           string
		until          int64
		was, now, gone []uint64
		nodes, pending []dc.NodeID
	}{
		{"a copy takes another's place", soon, []uint64{1, 2, 3}, []uint64{1, 2, 4}, nil, []dc.NodeID{1, 2, 4}, []dc.NodeID{3}},
		{"a dead node deletes nothing", soon, []uint64{1, 2, 3}, []uint64{1, 2, 4}, []uint64{3}, []dc.NodeID{1, 2, 4}, nil},
		{"one more", soon, []uint64{1, 2, 3}, []uint64{1, 2, 3, 4}, nil, []dc.NodeID{1, 2, 3, 4}, nil},
		{"the row was another", soon, []uint64{1, 2}, []uint64{1, 2, 4}, nil, []dc.NodeID{1, 2, 3}, []dc.NodeID{4}},
		{"too late", past, []uint64{1, 2, 3}, []uint64{1, 2, 4}, nil, []dc.NodeID{1, 2, 3}, []dc.NodeID{4}},
		{"to nowhere", soon, []uint64{1, 2, 3}, nil, nil, []dc.NodeID{1, 2, 3}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, id := placed(t)
			moved := w.relocate(t, tc.until, &command.DataMove{Block: id.Bytes(), Was: tc.was, Now: tc.now, Gone: tc.gone})
			nodes, pending := w.state(t, id)
			if moved == slices.Equal(nodes, []dc.NodeID{1, 2, 3}) || !slices.Equal(nodes, tc.nodes) || !slices.Equal(pending, tc.pending) {
				t.Fatalf("moved %v, on %v, to be deleted on %v; want %v, %v", moved, nodes, pending, tc.nodes, tc.pending)
			}
		})
	}
}

func TestANodeThatHasYetToDeleteItsOldCopyGetsNoNewOne(t *testing.T) {
	const soon = storagetest.StartClock + 60_000
	w, id := placed(t)
	w.relocate(t, soon, &command.DataMove{Block: id.Bytes(), Was: []uint64{1, 2, 3}, Now: []uint64{1, 2, 4}})
	back := &command.DataMove{Block: id.Bytes(), Was: []uint64{1, 2, 4}, Now: []uint64{1, 2, 3}}
	if w.relocate(t, soon, back) {
		t.Fatal("the deletion under way would take the new copy")
	}
	if _, err := w.do(&command.DataCommand{Op: &command.DataCommand_Forget{Forget: &command.DataForget{Blocks: []*command.DataGarbage{{Node: 3, Block: id.Bytes()}}}}}); err != nil {
		t.Fatal(err)
	}
	if !w.relocate(t, soon, back) {
		t.Fatal("refused after the deletion was done")
	}
	if nodes, pending := w.state(t, id); !slices.Equal(nodes, []dc.NodeID{1, 2, 3}) || !slices.Equal(pending, []dc.NodeID{4}) {
		t.Fatalf("on %v, to be deleted on %v", nodes, pending)
	}
}

func TestABlockThatIsGoneLeavesItsNewCopyToBeDeleted(t *testing.T) {
	w := newWorld()
	id := file.BlockID{Node: 9, Boot: 9, Seq: 9}
	if w.relocate(t, storagetest.StartClock+60_000, &command.DataMove{Block: id.Bytes(), Was: []uint64{1, 2, 3}, Now: []uint64{1, 2, 4}}) {
		t.Fatal("moved")
	}
	if nodes, pending := w.state(t, id); nodes != nil || !slices.Equal(pending, []dc.NodeID{4}) {
		t.Fatalf("on %v, to be deleted on %v", nodes, pending)
	}
}
