package agent

import (
	"cmp"
	"slices"
	"time"

	"missingos/scheduler/driver"
	"missingos/srv/dc"
)

// PruneEvery is how often Prune is worth calling.
const PruneEvery = 10 * time.Minute

// Prune removes the output of ended tasks that is older than dc.TaskOutputAge, and the oldest of what exceeds dc.MaxTaskOutputs in all.
func Prune(d *driver.Driver, now time.Time) (removed int, err error) {
	kept := d.Kept()
	slices.SortFunc(kept, func(a, b driver.Kept) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.ID, b.ID)) })
	var total int64
	for _, k := range kept {
		total += k.Bytes
		if k.Running || total <= dc.MaxTaskOutputs && now.Sub(k.Last) <= dc.TaskOutputAge {
			continue
		}
		if rerr := d.Remove(k.ID); rerr != nil {
			err = cmp.Or(err, rerr)
			continue
		}
		removed++
	}
	return removed, err
}
