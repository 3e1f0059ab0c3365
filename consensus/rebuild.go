package consensus

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"missingos/consensus/logstore"
	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// A replica whose content is wrong is rebuilt: its log and its votes are right, only what it made of the log is not. So it stays a member, stops
// answering from its state, hands over the leadership if it has it, sets what it has aside, pulls the state of a replica that is right, and goes on
// applying the log from there. All of this is done on Raft's apply goroutine, in the place of an entry or a snapshot: nothing is applied meanwhile,
// and a replica that is elected while it is rebuilt is not ready to lead before it is done.

// An asideSetter is a StateMachine that keeps the state which the next Restore replaces, for people to look at.
type asideSetter interface {
	// SetAside returns where the state will be.
	SetAside() (path string, err error)
}

const (
	rebuildRetry    = time.Second // after a failed attempt; doubled up to rebuildMaxRetry
	rebuildMaxRetry = 30 * time.Second
	handOverTries   = 10
)

// wrong is what is known of a replica whose content is wrong.
type wrong struct {
	Why  string      `json:"why"`
	From []dc.NodeID `json:"from,omitempty"` // that are right; empty: any
}

// wrongFile is in the directory of a replica that is to be rebuilt.
const wrongFile = "WRONG"

// MarkWrong has the replica whose directory is dir (GroupConfig.Dir) rebuilt when it is opened, from nodes that are right (empty: any other member). Its
// state machine may have lost everything.
func MarkWrong(dir, why string, from []dc.NodeID) error {
	b, err := json.Marshal(wrong{why, from})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = logstore.WriteFile(filepath.Join(dir, wrongFile), b)
	}
	return err
}

// MarkedWrong tells whether MarkWrong was called for dir and the replica is not rebuilt yet.
func MarkedWrong(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, wrongFile))
	return err == nil
}

// readWrong finds the mark; nil if there is none.
func readWrong(dir string) (*wrong, error) {
	path := filepath.Join(dir, wrongFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	w := &wrong{}
	if err == nil {
		err = json.Unmarshal(b, w)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return w, nil
}

// Rebuild has this replica's content fetched anew from nodes that are right (empty: any other member), in the background. It is refused for a group
// that has no other member.
func (g *Group) Rebuild(why string, from []dc.NodeID) error {
	others := slices.DeleteFunc(slices.Clone(g.voters()), func(n dc.NodeID) bool { return n == g.host.cfg.Node })
	if len(others) == 0 {
		return dc.Errorf(dc.Invalid, "rebuild", g.cfg.ID.String(), "the group has no other replica to be rebuilt from")
	}
	w := &wrong{Why: why, From: from}
	if !g.wrong.CompareAndSwap(nil, w) {
		return nil // it is being rebuilt
	}
	if err := MarkWrong(g.cfg.Dir, w.Why, w.From); err != nil { // it is rebuilt all the same, unless the process ends first
		g.log.Error("that the replica is wrong is not on disk", "err", err)
	}
	g.log.Error("REPLICA IS WRONG: it is not used any more and is fetched anew", "why", why)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Go(g.seeRebuilt)
	}
	return nil
}

// Rebuilding tells why the replica is being rebuilt; empty if it is not.
func (g *Group) Rebuilding() string {
	if w := g.wrong.Load(); w != nil {
		return w.Why
	}
	return ""
}

// seeRebuilt brings Raft's apply goroutine to rebuild, whether or not there is anything to apply.
func (g *Group) seeRebuilt() {
	for try := 0; g.ctx.Err() == nil && g.IsLeader() && try < handOverTries; try++ {
		ctx, cancel := context.WithTimeout(g.ctx, 5*time.Second)
		if err := g.Transfer(ctx); err != nil {
			g.log.Warn("a replica that is wrong still leads", "err", err)
			pause(ctx, rebuildRetry)
		}
		cancel()
	}
	for wait := 200 * time.Millisecond; g.ctx.Err() == nil && g.wrong.Load() != nil; wait = min(2*wait, rebuildMaxRetry) {
		// Either comes to fsm.rebuild: a snapshot unless nothing was applied since the start, an entry if somebody leads.
		_ = g.answer(g.raft.Snapshot())
		if leader, _ := g.Leader(); leader != 0 && leader != g.host.cfg.Node && g.wrong.Load() != nil {
			ctx, cancel := context.WithTimeout(g.ctx, 5*time.Second)
			_, _ = g.host.transport.Compare(ctx, leader, g.cfg.ID, true)
			cancel()
		}
		pause(g.ctx, wait)
	}
}

// rebuild replaces the content if it is wrong. It runs on the apply goroutine and returns false only if the group closes before it is right. The state
// will be that after entry atLeast or a later one.
func (f *fsm) rebuild(atLeast uint64) bool {
	g := f.g
	w := g.wrong.Load()
	if w == nil {
		return true
	}
	if a, ok := g.cfg.Machine.(asideSetter); ok && g.cfg.Machine.Applied() > 0 {
		if path, err := a.SetAside(); err != nil {
			g.log.Warn("the wrong state is not kept", "err", err)
		} else {
			g.log.Info("the wrong state is kept, to be looked at", "path", path)
		}
	}
	for wait := rebuildRetry; ; wait = min(2*wait, rebuildMaxRetry) {
		if wait == rebuildMaxRetry {
			w = &wrong{Why: w.Why} // those who were right then may be gone: any other member
		}
		f.began.Store(0) // it takes long, which is not a stall
		err := g.refetch(w, max(atLeast, f.index()))
		if err == nil {
			break
		}
		g.log.Error("replica not rebuilt yet", "why", w.Why, "err", err)
		if pause(g.ctx, wait); g.ctx.Err() != nil {
			return false
		}
	}
	f.stamp(g.cfg.Machine.Clock())
	f.reached(uint64(g.cfg.Machine.Applied()))
	if err := errors.Join(os.Remove(filepath.Join(g.cfg.Dir, wrongFile)), logstore.SyncDir(g.cfg.Dir)); err != nil {
		g.log.Warn("the mark of a wrong replica is not removed: it will be rebuilt once more at the next start", "err", err)
	}
	g.wrong.Store(nil)
	g.log.Info("replica rebuilt", "index", uint64(g.cfg.Machine.Applied()))
	return true
}

// refetch pulls the state of another replica over this one's.
func (g *Group) refetch(w *wrong, atLeast uint64) error {
	from := w.From
	if len(from) == 0 {
		from = g.sources(0)[1:]
	}
	from = slices.DeleteFunc(slices.Clone(from), func(n dc.NodeID) bool { return n == g.host.cfg.Node })
	p := &puller{g: g, manifest: manifest{Version: manifestVersion, Group: g.cfg.ID, Index: atLeast}, sources: from}
	defer p.stop()
	return g.cfg.Machine.Restore(g.ctx, dc.Index(atLeast), p.fetch)
}

// condemn tells those who differ from the majority to be rebuilt from those who do not.
func (g *Group) condemn(ctx context.Context, c *Compared) {
	var right []dc.NodeID
	var sum string
	for _, r := range c.Replicas {
		if r.Err == nil && !slices.Contains(c.Differ, r.Node) {
			right, sum = append(right, r.Node), hex.EncodeToString(r.Sum)
		}
	}
	for _, n := range c.Differ {
		why := "after entry " + strconv.FormatUint(uint64(c.Index), 10) + " its content is not " + sum + ", which " + nodesText(right) + " have"
		var err error
		if n == g.host.cfg.Node {
			err = g.Rebuild(why, right)
		} else {
			err = g.host.transport.Rebuild(ctx, n, &transport.RebuildRequest{Group: uint64(g.cfg.ID), Why: why, Sources: numbers(right)})
		}
		if err != nil {
			g.log.Error("a replica that differs is not rebuilt", "node", n.String(), "err", err)
		}
	}
}

func nodesText(nodes []dc.NodeID) string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.String()
	}
	return strings.Join(names, ", ")
}

func numbers(nodes []dc.NodeID) []uint64 {
	out := make([]uint64, len(nodes))
	for i, n := range nodes {
		out[i] = uint64(n)
	}
	return out
}
