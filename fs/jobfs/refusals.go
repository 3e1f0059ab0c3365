package jobfs

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"missingos/srv/dc"
)

// Bounds of what is remembered.
const (
	maxRefusals = 32  // of one user
	maxUsers    = 256 // beyond that the memory starts afresh
)

// refusals are the last refused specs of each user of this node's mount.
type refusals struct {
	mu     sync.Mutex
	byUser map[uint32][]refusal // newest last
}

type refusal struct {
	at     time.Time
	reason string
	first  string // line of the spec
}

func newRefusals() *refusals { return &refusals{byUser: map[uint32][]refusal{}} }

// note remembers why a spec was refused, and returns err. An answer that did not come is no refusal.
func (r *refusals) note(ctx context.Context, spec []byte, err error) error {
	if err == nil || dc.KindOf(err) == dc.Unavailable || dc.KindOf(err) == dc.Interrupted {
		return err
	}
	first, _, _ := bytes.Cut(spec, []byte{'\n'})
	p, _ := dc.PrincipalOf(ctx)
	n := refusal{time.Now(), err.Error(), fmt.Sprintf("%.60s", first)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byUser) >= maxUsers && r.byUser[p.UID] == nil {
		clear(r.byUser)
	}
	list := r.byUser[p.UID]
	if k := len(list); k > 0 && list[k-1].reason == n.reason && list[k-1].first == n.first && n.at.Sub(list[k-1].at) < time.Second {
		return err // the same one, validated at close and again at release
	}
	if list = append(list, n); len(list) > maxRefusals {
		list = list[1:]
	}
	r.byUser[p.UID] = list
	return err
}

// read lists the caller's, newest first.
func (r *refusals) read(ctx context.Context) ([]byte, error) {
	p, _ := dc.PrincipalOf(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	list := r.byUser[p.UID]
	for i := len(list) - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "%s %s (the spec begins: %s)\n", list[i].at.UTC().Format(time.RFC3339), list[i].reason, list[i].first)
	}
	return b.Bytes(), nil
}
