package client

import (
	"context"

	"missingos/srv/dcpb"
)

// KVRange is a part of a table: the rows from Start on and before End; "" is no bound.
type KVRange struct {
	ID, Epoch   uint64 // the epoch grows with every change of the bounds
	Start, End  string
	Rows, Bytes uint64 // about
}

// kvRanges reads a table's ranges; from a node that knows of none it is one.
func kvRanges(r *dcpb.KVStatReply) []KVRange {
	if len(r.Ranges) == 0 {
		return []KVRange{{ID: 1, Epoch: 1, Rows: r.Rows, Bytes: r.Bytes}}
	}
	out := make([]KVRange, len(r.Ranges))
	for i, g := range r.Ranges {
		out[i] = KVRange{ID: g.Id, Epoch: g.Epoch, Start: string(g.Start), End: string(g.End), Rows: g.Rows, Bytes: g.Bytes}
	}
	return out
}

// Split divides the range that a row is in, or would be: from key on it is a range of its own. It answers dc.Exists where one begins already,
// dc.Invalid for the key of a column, dc.Unsupported while a node of the cluster is too old.
func (k *KV) Split(ctx context.Context, t Descriptor, key string) error {
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.Split(ctx, &dcpb.KVSplitRequest{Header: h, Table: t.ID, Key: []byte(key)})
	})
	return err
}
