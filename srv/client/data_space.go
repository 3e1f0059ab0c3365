package client

import (
	"context"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

// Space tells what the files take and how much more there is room for: what the stores have free, divided by the replicas.
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
	var sum, count int64
	least := int64(math.MaxInt64)
	for free := range answers {
		sum += free
		least = min(least, free)
		count++
	}
	switch {
	case count == 0:
		return 0
	case len(nodes) <= replicas:
		return least // every block is on every node, so the fullest decides
	}
	return sum / count * int64(len(nodes)) / replicas
}
