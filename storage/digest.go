package storage

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"missingos/srv/dc"
)

// A Digest is what two replicas' states after one entry are compared by.
type Digest struct {
	Mark
	Rows  uint64
	Bytes uint64 // of keys and values
	Sum   [sha256.Size]byte
}

// digestRest is how long Digest rests after each piece, as a multiple of the time that piece took: it takes a quarter of a processor.
const digestRest = 3

// Digest reads the whole state as it was after entry at, which must be one without commands: only at those do all replicas have a version of their
// own, however entries were gathered. It waits until the entry is applied. Reading takes long, a quarter of a processor and no lock; entries go on being
// applied. dc.Again means that the version is not kept any more: a checkpoint has come, or a snapshot was restored.
func (s *Shard) Digest(ctx context.Context, at dc.Index) (Digest, error) {
	if err := s.WaitApplied(ctx, at); err != nil {
		return Digest{}, err
	}
	h, err := s.holdAt(at)
	if err != nil {
		return Digest{}, err
	}
	defer h.Release()
	d := Digest{Mark: Mark{Index: at}}
	sum := sha256.New()
	var last []byte
	for {
		begin := time.Now()
		done, err := h.digest(sum, &d, &last)
		if err != nil || done {
			sum.Sum(d.Sum[:0])
			return d, dc.Wrap(err, "storage.digest", s.dir)
		}
		select {
		case <-time.After(digestRest * time.Since(begin)):
		case <-ctx.Done():
			return d, dc.Errorf(dc.KindOf(ctx.Err()), "storage.digest", s.dir, "%w", ctx.Err())
		}
	}
}

// holdAt keeps the state after an entry that is applied already.
func (s *Shard) holdAt(at dc.Index) (*Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	if at > s.applied.Index || at < s.durable.Index || at <= s.began {
		return nil, dc.Errorf(dc.Again, "storage.digest", s.dir, "the state after entry %d is not kept; there are those of %d to %d", at, max(s.durable.Index, s.began+1), s.applied.Index)
	}
	h := &Held{Mark: Mark{Index: at}, shard: s, gen: s.gen}
	h.gen.pins[at]++
	return h, nil
}

// digest adds a piece of the rows, those after last; done says that it was the last piece.
func (h *Held) digest(sum interface{ Write([]byte) (int, error) }, d *Digest, last *[]byte) (done bool, err error) {
	release, err := h.use()
	if err != nil {
		return false, err
	}
	defer release()
	size := 0
	var head []byte
	err = h.gen.physical(h.Index, *last, func(key []byte, meta byte, value []byte) error {
		head = append(appendBytes(head[:0], key), meta)
		head = appendBytes(head, value)
		_, _ = sum.Write(head) // a hash takes everything
		d.Rows++
		d.Bytes += uint64(len(key) + len(value))
		*last = append((*last)[:0], key...)
		if size += len(head); size >= pieceBytes {
			return errPieceFull
		}
		return nil
	})
	if errors.Is(err, errPieceFull) {
		return false, nil
	}
	return true, err
}
