package consensus

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"missingos/consensus/logstore"
	"missingos/srv/dc"
)

// slowLog takes its time to append, so that entries wait in Raft's queue.
type slowLog struct{ logstore.Store }

func (s slowLog) StoreLogs(logs []*raft.Log) error {
	time.Sleep(50 * time.Millisecond)
	return s.Store.StoreLogs(logs)
}

func (s slowLog) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// Raft leaves what is in its queue when it shuts down without an answer; closing must not wait for one.
func TestClosingDoesNotWaitForEntriesThatRaftForgot(t *testing.T) {
	for range 5 {
		h := NewHost(HostConfig{
			Node: 1, Timing: fast, Fatal: func(err error) { t.Error(err) },
			Dial: func(dc.NodeID) (grpc.ClientConnInterface, error) { return nil, dc.Unavailable },
			OpenLog: func(cfg logstore.Config) (logstore.Store, error) {
				s, err := openOwnLog(cfg)
				return slowLog{s}, err
			},
		})
		g, err := h.Open(GroupConfig{ID: testGroup, Dir: t.TempDir(), Machine: &journal{}, Bootstrap: []dc.NodeID{1}})
		if err != nil {
			t.Fatal(err)
		}
		for !g.IsLeader() {
			time.Sleep(5 * time.Millisecond)
		}
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 * maxInFlight {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := g.Propose(ctx, []byte("x")); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(120 * time.Millisecond)
		closed := make(chan error, 1)
		ended, stop := context.WithCancel(t.Context())
		stop()
		go func() { closed <- h.Close(ended) }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the host does not close")
		}
		cancel()
		wg.Wait()
	}
}
