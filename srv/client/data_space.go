package client

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

// Space tells what the files take and how much more there is room for, three times over on different nodes.
// The stores are asked every few seconds at most; those that do not answer count nothing.
func (d *Data) Space(ctx context.Context) (file.Space, error) {
	d.suspect.mu.Lock()
	space, fresh := d.suspect.space, time.Since(d.suspect.at) < spaceFreshFor
	d.suspect.mu.Unlock()
	if fresh {
		return space, nil
	}
	var out *dcpb.DataSpaceReply
	err := d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		out, err = s.Space(ctx, &dcpb.DataSpaceRequest{Header: h})
		return err
	})
	if err != nil {
		return file.Space{}, err
	}
	space = file.Space{Used: out.Used, Inodes: out.Inodes, Free: d.freeBytes(ctx)}
	space.Total = space.Used + space.Free
	d.suspect.mu.Lock()
	d.suspect.space, d.suspect.at = space, time.Now()
	d.suspect.mu.Unlock()
	return space, nil
}

const maxSpaceAsked = 32 // nodes; of more, a sample is asked

func (d *Data) freeBytes(ctx context.Context) int64 {
	nodes := d.candidates()
	asked := nodes[:min(len(nodes), maxSpaceAsked)]
	answers := make(chan int64, len(asked))
	var wg sync.WaitGroup
	for _, n := range asked {
		wg.Go(func() {
			attempt, cancel := context.WithTimeout(ctx, spaceTimeout)
			defer cancel()
			err := d.c.OnNode(attempt, n, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
				out, err := dcpb.NewBlockClient(cc).Space(ctx, &dcpb.BlockSpaceRequest{Header: h})
				if err == nil {
					answers <- out.Free
				}
				return err
			})
			if err != nil {
				d.suspect.add(n)
			}
		})
	}
	wg.Wait()
	close(answers)
	var free []int64
	for f := range answers {
		free = append(free, max(f, 0))
	}
	room := roomFor(free, replicas)
	if len(free) > 0 && len(nodes) > len(asked) {
		room = room / int64(len(asked)) * int64(len(nodes))
	}
	return room
}

// roomFor is how many bytes there is room for on nodes with free bytes each, when every byte is on as many different nodes as copies says, or on all if there are
// fewer. Of j copies the j emptiest nodes may hold all; the other copies must fit into the rest, for each j.
func roomFor(free []int64, copies int) int64 {
	if len(free) == 0 {
		return 0
	}
	copies = min(copies, len(free))
	free = slices.Sorted(slices.Values(free))
	rest := int64(0)
	for _, f := range free {
		rest += f
	}
	room := int64(math.MaxInt64)
	for j := range copies {
		room = min(room, rest/int64(copies-j))
		rest -= free[len(free)-1-j]
	}
	return room
}
