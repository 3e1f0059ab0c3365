package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// staleRounds is how often all sources are asked to go on with a state that those which answer do not have, before the others are given up.
const staleRounds = 3

// restore replaces the state by what a manifest names: the rows come from its source, or any other node that has them.
func (g *Group) restore(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, 4*dc.KiB))
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil || m.Version != manifestVersion || m.Group != g.cfg.ID {
		return fmt.Errorf("snapshot manifest of group %s is not usable: %q", g.cfg.ID, b)
	}
	<-g.started // NewRaft itself never restores, it only starts the goroutine that called this
	if uint64(g.cfg.Machine.Applied()) >= m.Index {
		// The process ended between the state machine's part and the record of it: only that is missing.
		if err := g.cfg.Machine.Checkpoint(); err != nil {
			return err
		}
		return g.snaps.restored()
	}
	p := &puller{g: g, manifest: m, sources: g.sources(m.Source)}
	err = g.cfg.Machine.Restore(g.ctx, dc.Index(m.Index), p.fetch)
	p.stop()
	if err != nil {
		g.log.Warn("snapshot is not restored", "index", m.Index, "err", err)
		return err
	}
	g.log.Info("snapshot restored", "index", uint64(g.cfg.Machine.Applied()))
	return g.snaps.restored()
}

// sources lists where rows may be pulled from, the manifest's source first: a new replica knows the others only from what came with it.
func (g *Group) sources(first dc.NodeID) []dc.NodeID {
	nodes := map[dc.NodeID]bool{first: true, g.host.cfg.Node: true}
	all := []dc.NodeID{first}
	add := func(n dc.NodeID) {
		if n != 0 && !nodes[n] {
			nodes[n] = true
			all = append(all, n)
		}
	}
	for _, s := range g.snaps.offered().Servers {
		add(nodeOf(s.ID))
	}
	for n := range g.members() {
		add(n)
	}
	return all
}

// A puller gets the rows of one snapshot.
type puller struct {
	g        *Group
	manifest manifest
	sources  []dc.NodeID
	stale    int // rounds in a row in which a source did not have the state, and another did not answer

	version uint64 // that the sources are asked to keep
	end     context.CancelFunc
	keeping sync.WaitGroup
}

// fetch implements Fetch.
func (p *puller) fetch(ctx context.Context, want Pull) (io.ReadCloser, error) {
	var errs, stale error
	silent := false
	for _, n := range p.sources {
		s, err := p.from(ctx, n, want)
		if err == nil {
			p.stale = 0
			p.g.log.Info("pulling a snapshot", "from", n.String(), "index", s.Version, "goes_on", want.At != 0)
			p.keep(s.Version)
			p.g.pulling.Store(uint64(n))
			return &pulled{slowReader{ctx, &p.g.host.receiving, s}, p.g, s}, nil
		}
		errs = errors.Join(errs, fmt.Errorf("from %s: %w", n, err))
		if errors.Is(err, dc.Stale) {
			stale = err
		} else {
			silent = true
		}
	}
	if stale == nil {
		return nil, errs
	}
	if p.stale++; silent && p.stale < staleRounds {
		return nil, dc.Errorf(dc.Unavailable, "pull", p.g.cfg.ID.String(), "%v", errs) // not dc.Stale yet: who has it may only be slow
	}
	p.stale = 0
	return nil, stale
}

// from asks one node.
func (p *puller) from(ctx context.Context, n dc.NodeID, want Pull) (*transport.Stream, error) {
	t, group, m := p.g.host.transport, p.g.cfg.ID, p.manifest
	at, err := t.Progress(ctx, n, group) // a node of an earlier version does not look at AtLeast
	if err != nil {
		return nil, err
	}
	if at.Applied < m.Index {
		return nil, fmt.Errorf("node %s has applied %d only, the snapshot needs %d", n, at.Applied, m.Index)
	}
	return t.Pull(ctx, n, &transport.PullRequest{Group: uint64(group), Format: want.Format, At: uint64(want.At), AtLeast: m.Index, After: want.After})
}

// keep has all sources hold the state that is pulled, until stop: any may be needed, and once the rows are here the log has to reach back to them.
func (p *puller) keep(version uint64) {
	if version == p.version {
		return
	}
	p.stop()
	p.version = version
	if version == 0 {
		return
	}
	ctx, cancel := context.WithCancel(p.g.ctx)
	p.end = cancel
	for _, n := range p.sources {
		p.keeping.Go(func() {
			for ctx.Err() == nil {
				again := p.g.host.cfg.Timing.HoldLinger / 3
				if err := p.g.host.transport.Hold(ctx, n, p.g.cfg.ID, version); err != nil {
					p.g.log.Debug("state is not held", "node", n.String(), "index", version, "err", err)
					again = min(again, time.Second)
				}
				pause(ctx, again)
			}
		})
	}
}

// stop ends what keep began.
func (p *puller) stop() {
	if p.end != nil {
		p.end()
		p.end = nil
	}
	p.keeping.Wait()
	p.version = 0
}

// pulled is a stream that stops when this node's disk is full.
type pulled struct {
	slowReader
	g      *Group
	stream *transport.Stream
}

func (p *pulled) Read(b []byte) (int, error) {
	if err := p.g.host.cfg.Space(); err != nil {
		return 0, err
	}
	return p.slowReader.Read(b)
}

func (p *pulled) Close() error {
	p.g.pulling.Store(0)
	return p.stream.Close()
}
