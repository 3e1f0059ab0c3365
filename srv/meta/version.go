package meta

import (
	"context"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/meta"
)

// unsaid is what a node runs that does not say so when it joins.
var unsaid = dc.Version{0, 2, 0}

// checkVersion refuses a node whose version is older than what every node runs, itself included if it is a member: what they write it may not know.
func (t *term) checkVersion(ctx context.Context, op, version string) error {
	mine, ok := dc.ParseVersion(version)
	if version == "" {
		mine, ok = unsaid, true
	}
	if !ok {
		return nil
	}
	return t.replica.View(ctx, func(r storage.Reader) error {
		if lowest, ok := lowestVersion(meta.Nodes(r)); ok && mine.Before(lowest) {
			return dc.Errorf(dc.Unsupported, op, "", "this node runs version %s, all others %s or later, and what they write it may not know: install %s on it", mine, lowest, lowest)
		}
		return nil
	})
}

// lowestVersion is the oldest version that a member runs, as far as they have said.
func lowestVersion(nodes func(func(*command.MetaNode) bool)) (lowest dc.Version, ok bool) {
	for n := range nodes {
		if v, says := dc.ParseVersion(n.Version); says && n.State == command.MetaNode_STATE_ACTIVE && (!ok || v.Before(lowest)) {
			lowest, ok = v, true
		}
	}
	return lowest, ok
}
