package data

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// DefaultScrub is how long a scrub of a whole store takes: a disk is read once a week, which nobody feels.
const DefaultScrub = 7 * 24 * time.Hour

// scrubNap is the least that a scrub sleeps: what is due for less gathers.
const scrubNap = 50 * time.Millisecond

// Scrub reads every block of the store once, at a pace that makes it last for period, beginning anywhere: a node that is often started anew comes to all its blocks,
// too. Bad copies are reported to the data group's leader, who has them replaced. It returns how many it found when it is through or ctx ends.
func (b *Blocks) Scrub(ctx context.Context, self dc.NodeID, period time.Duration) (bad int, err error) {
	ids := b.store.Blocks()
	if len(ids) == 0 {
		return 0, nil
	}
	var total int64
	for _, id := range ids {
		size, _ := b.store.Size(id)
		total += int64(size)
	}
	first := rand.IntN(len(ids))
	owed := time.Duration(0)
	for i := range ids {
		id := ids[(first+i)%len(ids)]
		size, here := b.store.Size(id)
		if !here {
			continue
		}
		began := time.Now()
		if err := b.store.Verify(id); errors.Is(err, dc.Corrupt) {
			bad++
			if b.peers != nil {
				if err := b.peers.ReportBad(ctx, []file.BadCopy{{Block: id, Node: self}}); err != nil {
					return bad, err
				}
			}
		}
		owed += time.Duration(float64(period)*float64(size)/float64(max(total, 1))) - time.Since(began)
		if owed < scrubNap {
			continue
		}
		if !pause(ctx, owed) {
			return bad, ctx.Err()
		}
		owed = 0
	}
	return bad, nil
}
