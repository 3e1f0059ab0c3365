package linear

import (
	"context"
	"fmt"

	"missingos/srv/client"
	"missingos/srv/dc"
)

// clientTable uses rows through the Go client.
type clientTable struct {
	kv    *client.KV
	table client.Descriptor
}

func (t clientTable) Do(ctx context.Context, c RowCall) (RowAnswer, error) {
	switch c.Verb {
	case Get:
		_, value, err := t.kv.Get(ctx, t.table, c.Key)
		return outcome(err, RowAnswer{Done: true, Value: string(value)}, dc.NotFound)
	case Put:
		_, err := t.kv.Put(ctx, t.table, c.Key, client.KVPut{Data: []byte(c.Value)})
		return outcome(err, RowAnswer{Done: true}, 0)
	case Create:
		_, err := t.kv.Put(ctx, t.table, c.Key, client.KVPut{Data: []byte(c.Value), Exclusive: true})
		return outcome(err, RowAnswer{Done: true}, dc.Exists)
	case Delete:
		return outcome(t.kv.Remove(ctx, t.table, c.Key, false), RowAnswer{Done: true}, dc.NotFound)
	case Swap:
		res, err := t.kv.Txn(ctx, t.table, client.KVTxn{
			If:   []client.KVCondition{{Key: c.Key, Value: []byte(c.Old)}},
			Then: []client.KVAction{{Key: c.Key, Put: []byte(c.Value)}},
		})
		return outcome(err, RowAnswer{Done: res.Succeeded}, 0)
	case Add:
		one := int64(1)
		res, err := t.kv.Txn(ctx, t.table, client.KVTxn{Then: []client.KVAction{{Key: c.Key, Add: &one}}})
		if err != nil {
			return outcome(err, RowAnswer{}, 0)
		}
		if len(res.Values) != 1 {
			return RowAnswer{Done: true, Value: fmt.Sprint(res)}, nil // no order explains that
		}
		return RowAnswer{Done: true, Value: number(string(res.Values[0].Value))}, nil
	}
	panic(fmt.Sprintf("linear: no verb %s", c.Verb))
}

// outcome: refused is the kind that means that the state did not allow it.
func outcome(err error, done RowAnswer, refused dc.Kind) (RowAnswer, error) {
	switch {
	case err == nil:
		return done, nil
	case refused != 0 && dc.KindOf(err) == refused:
		return RowAnswer{}, nil
	}
	return RowAnswer{}, fmt.Errorf("%w: %w", errUnknown, err)
}

// clientLocker takes locks through the Go client.
type clientLocker struct{ lock *client.Lock }

func (l clientLocker) Acquire(ctx context.Context, lock string) (Held, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	lease, err := l.lock.Acquire(ctx, lock, true, true)
	if err != nil {
		return nil, err
	}
	return clientHeld{lease}, nil
}

type clientHeld struct{ *client.LockLease }

func (h clientHeld) Fence() uint64 { return uint64(h.LockLease.Fence()) }

func (h clientHeld) Trusted() bool { return h.Err() == nil }
