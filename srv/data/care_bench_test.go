package data

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/replica"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// allThere is stores that have everything.
type allThere struct{}

func (allThere) HaveBlocks(_ context.Context, _ dc.NodeID, ids []file.BlockID) ([]uint32, error) {
	sizes := make([]uint32, len(ids))
	for i := range sizes {
		sizes[i] = 4096
	}
	return sizes, nil
}

func (allThere) FetchBlocks(_ context.Context, _ dc.NodeID, b []file.Fetch) ([]error, error) {
	return make([]error, len(b)), nil
}

func (allThere) VerifyBlocks(_ context.Context, _ dc.NodeID, ids []file.BlockID) ([]error, error) {
	return make([]error, len(ids)), nil
}

func (allThere) StoreSpace(context.Context, dc.NodeID) (file.Store, error) {
	return file.Store{Free: dc.GiB}, nil
}

// BenchmarkRound is one look at 100,000 blocks that want nothing, without what the nodes take to answer.
func BenchmarkRound(b *testing.B) {
	const blocks = 100_000
	m := replica.NewMemory(4, replica.Kind{Machine: data.New})
	defer m.Close()
	do := func(c *command.DataCommand) *command.DataResult {
		c.Version, c.Caller = data.Version, &command.DataCaller{}
		body, err := proto.Marshal(c)
		if err != nil {
			b.Fatal(err)
		}
		out, err := m.Propose(b.Context(), m.NewID(), body)
		if err != nil {
			b.Fatal(err)
		}
		res := &command.DataResult{}
		if err := proto.Unmarshal(out, res); err != nil {
			b.Fatal(err)
		}
		return res
	}
	for i := 0; i < blocks; i += 1000 {
		f := do(&command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{Parent: uint64(file.Root), Name: fmt.Append(nil, i), Mode: file.Regular | 0o644}}})
		c := &command.DataCommit{Ino: f.Inode.Ino}
		for j := range 1000 {
			id := file.BlockID{Node: 1, Boot: 1, Seq: uint64(i + j)}.Bytes()
			c.Blocks = append(c.Blocks, &command.DataLocation{Block: id, Size: 4096, Nodes: []uint64{1, 2, 3}})
			c.Pieces = append(c.Pieces, &command.DataPiece{Off: int64(j) * 4096, Len: 4096, Block: id})
		}
		do(&command.DataCommand{Op: &command.DataCommand_Commit{Commit: c}})
	}
	c := newCare(CareConfig{Stores: allThere{}, Members: func(context.Context) ([]Member, error) {
		return []Member{{Node: 1, Up: true}, {Node: 2, Up: true}, {Node: 3, Up: true}, {Node: 4, Up: true}}, nil
	}}, m, slog.New(slog.DiscardHandler))
	if err := c.look(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.round(b.Context()); err != nil || c.status.blocks != blocks || c.queuedTasks() != 0 {
			b.Fatal(c.status.blocks, err)
		}
	}
	b.ReportMetric(blocks/(b.Elapsed().Seconds()/float64(b.N)), "blocks/s")
}
