package kv

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/kv"
)

// How much of a range is counted before it is split: rows, bytes. A rest that is longer is taken to be half of the range at least.
const (
	splitCounts = 1 << 20
	splitReads  = 256 * dc.MiB
)

// Split divides the range that a key is in. What each part holds is counted first, so that only the division itself is in the log.
func (s *Service) Split(ctx context.Context, r *dcpb.KVSplitRequest) (*dcpb.KVChangeReply, error) {
	const op = "kv.split"
	if err := kv.CheckBoundary(op, r.Key); err != nil {
		return nil, err
	}
	if err := s.cfg.Ranges(); err != nil {
		return nil, err
	}
	c := &command.KVSplit{Table: r.Table, Key: r.Key}
	err := s.view(ctx, op, r.Header, r.Table, func(rd storage.Reader) error {
		in := kv.RangeOf(rd, r.Table, r.Key)
		c.Rows, c.Bytes = 0, 0
		for e := range kv.Scan(rd, r.Table, kv.ScanSpec{From: r.Key, To: in.End}) {
			c.Rows++
			c.Bytes += uint64(len(e.Key) + len(e.Row.Value))
			if c.Rows%1024 == 0 && ctx.Err() != nil {
				return dc.Errorf(dc.KindOf(ctx.Err()), op, string(r.Key), "while its rows were counted; nothing was changed")
			}
			if c.Rows == splitCounts || c.Bytes > splitReads {
				c.Rows, c.Bytes = max(c.Rows, in.Rows/2), max(c.Bytes, in.Bytes/2)
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.change(ctx, op, r.Header, c)
}
