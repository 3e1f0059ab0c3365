package replica_test

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counter is a machine that counts its commands and refuses the empty one.
type counter struct{}

func (counter) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, dc.Errorf(dc.Invalid, "count", "", "empty")
	}
	value, _ := tx.Get([]byte("n"))
	n := uint64(1)
	if value != nil {
		n += binary.BigEndian.Uint64(value)
	}
	value = binary.BigEndian.AppendUint64(nil, n)
	tx.Set([]byte("n"), value)
	tx.Emit(n)
	return value, nil
}

func TestMemoryAppliesEachRequestOnce(t *testing.T) {
	var seen []any
	m := replica.NewMemory(7, replica.Kind{
		Machine: func() storage.Machine { return counter{} },
		Applied: func(_ dc.GroupID, _ dc.Index, events []any) { seen = append(seen, events...) },
	})
	defer m.Close()
	id := m.NewID()
	for range 3 {
		got, err := m.Propose(t.Context(), id, []byte("x"))
		if err != nil || binary.BigEndian.Uint64(got) != 1 {
			t.Fatalf("got %x, %v", got, err)
		}
	}
	if got, err := m.Propose(t.Context(), m.NewID(), []byte("x")); err != nil || binary.BigEndian.Uint64(got) != 2 {
		t.Fatalf("got %x, %v", got, err)
	}
	if _, err := m.Propose(t.Context(), m.NewID(), nil); !errors.Is(err, dc.Invalid) {
		t.Fatalf("got %v", err)
	}
	if len(seen) != 2 {
		t.Fatalf("events %v", seen)
	}
	for range 3 * dc.MaxInFlightPerClient {
		if _, err := m.Propose(t.Context(), m.NewID(), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMemoryLeadsAndResigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ticks, runs atomic.Int32
		m := replica.NewMemory(7, replica.Kind{
			Machine: func() storage.Machine { return counter{} },
			Lead: func(ctx context.Context, r replica.Replica) {
				runs.Add(1)
				for {
					select {
					case <-ctx.Done():
						return
					case <-time.After(time.Second):
						ticks.Add(1)
						if _, err := r.Propose(ctx, r.NewID(), []byte("tick")); err != nil {
							t.Error(err)
						}
					}
				}
			},
		})
		defer m.Close()
		time.Sleep(10*time.Second + time.Millisecond)
		m.Resign()
		if _, err := m.Leading(7); !errors.Is(err, dc.NotLeader) {
			t.Errorf("after resigning: %v", err)
		}
		if err := m.View(t.Context(), func(storage.Reader) error { return nil }); !errors.Is(err, dc.NotLeader) {
			t.Errorf("view after resigning: %v", err)
		}
		if _, err := m.Leading(8); !errors.Is(err, dc.NotLeader) {
			t.Errorf("another group: %v", err)
		}
		time.Sleep(time.Minute)
		if ticks.Load() != 10 {
			t.Errorf("%d ticks", ticks.Load())
		}
		m.Lead()
		synctest.Wait()
		if runs.Load() != 2 {
			t.Errorf("Lead ran %d times", runs.Load())
		}
	})
}
