package transport

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// service answers other nodes.
type service struct {
	UnimplementedRaftServer
	t *Transport
}

// lane finds the group a request is for and checks that the sender is who it says.
func (t *Transport) lane(ctx context.Context, from, group uint64) (*Lane, error) {
	if err := t.checkPeer(ctx, from); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	l, ok := t.lanes[dc.GroupID(group)]
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "raft", dc.GroupID(group).String(), "node %s has no replica of the group", t.cfg.Node)
	}
	return l, nil
}

func (t *Transport) checkPeer(ctx context.Context, from uint64) error {
	if t.cfg.Peer == nil {
		return nil
	}
	if n, ok := t.cfg.Peer(ctx); !ok || uint64(n) != from {
		return dc.Errorf(dc.Denied, "raft", "", "a message of node n%d came from elsewhere", from)
	}
	return nil
}

// Append serves AppendEntries; heartbeats go straight to Raft's fast path.
func (s service) Append(ctx context.Context, r *AppendRequest) (*AppendReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	cmd := &raft.AppendEntriesRequest{
		RPCHeader: header(r.From), Term: r.Term,
		PrevLogEntry: r.PrevIndex, PrevLogTerm: r.PrevTerm, LeaderCommitIndex: r.Commit, Entries: decodeEntries(r.Entries),
	}
	beat := isHeartbeat(r)
	var resp any
	switch {
	case beat || l.replica == nil:
		resp, err = l.deliver(ctx, cmd, nil, beat)
	default:
		resp, err = l.inTurn(ctx, cmd, nil, func() (any, error) { return nil, l.replica.Arriving(ctx, cmd) })
		if err == nil {
			err = l.replica.Durable(ctx, math.MaxUint64) // what matched may be in memory only, if this replica has led
		}
	}
	if err != nil {
		return nil, err
	}
	a, ok := resp.(*raft.AppendEntriesResponse)
	if !ok {
		return nil, fmt.Errorf("unexpected response %T", resp)
	}
	return &AppendReply{Term: a.Term, LastIndex: a.LastLog, Success: a.Success, NoRetryBackoff: a.NoRetryBackoff}, nil
}

func isHeartbeat(r *AppendRequest) bool {
	return r.Term != 0 && r.PrevIndex == 0 && r.PrevTerm == 0 && len(r.Entries) == 0 && r.Commit == 0
}

// Vote serves RequestVote and RequestPreVote.
func (s service) Vote(ctx context.Context, r *VoteRequest) (*VoteReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	var cmd any
	if r.Pre {
		cmd = &raft.RequestPreVoteRequest{RPCHeader: header(r.From), Term: r.Term, LastLogIndex: r.LastIndex, LastLogTerm: r.LastTerm}
	} else {
		cmd = &raft.RequestVoteRequest{
			RPCHeader: header(r.From), Term: r.Term,
			LastLogIndex: r.LastIndex, LastLogTerm: r.LastTerm, LeadershipTransfer: r.Transfer,
		}
	}
	resp, err := l.deliver(ctx, cmd, nil, false)
	if err != nil {
		return nil, err
	}
	switch v := resp.(type) {
	case *raft.RequestVoteResponse:
		return &VoteReply{Term: v.Term, Granted: v.Granted}, nil
	case *raft.RequestPreVoteResponse:
		return &VoteReply{Term: v.Term, Granted: v.Granted}, nil
	}
	return nil, fmt.Errorf("unexpected response %T", resp)
}

// InstallSnapshot serves the offer of a snapshot; the rows are pulled by the state machine's side.
func (s service) InstallSnapshot(ctx context.Context, r *InstallSnapshotRequest) (*InstallSnapshotReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	cmd := &raft.InstallSnapshotRequest{
		RPCHeader: header(r.From), SnapshotVersion: raft.SnapshotVersion(r.Version), Term: r.Term,
		LastLogIndex: r.LastIndex, LastLogTerm: r.LastTerm, Configuration: r.Configuration,
		ConfigurationIndex: r.ConfigurationIndex, Size: int64(len(r.Manifest)),
	}
	resp, err := l.inTurn(ctx, cmd, r.Manifest, func() (any, error) {
		has, err := l.replica.Offered(ctx, cmd)
		if err != nil || !has {
			return nil, err
		}
		return &raft.InstallSnapshotResponse{RPCHeader: header(uint64(s.t.cfg.Node)), Term: l.replica.CurrentTerm(), Success: true}, nil
	})
	if err != nil {
		return nil, err
	}
	v, ok := resp.(*raft.InstallSnapshotResponse)
	if !ok {
		return nil, fmt.Errorf("unexpected response %T", resp)
	}
	return &InstallSnapshotReply{Term: v.Term, Success: v.Success}, nil
}

// TimeoutNow serves the order to stand for election at once.
func (s service) TimeoutNow(ctx context.Context, r *TimeoutNowRequest) (*TimeoutNowReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	if _, err := l.deliver(ctx, &raft.TimeoutNowRequest{RPCHeader: header(r.From)}, nil, false); err != nil {
		return nil, err
	}
	return &TimeoutNowReply{}, nil
}

// Confirm compares terms; see Group.ReadBarrier for why that is enough.
func (s service) Confirm(ctx context.Context, r *ConfirmRequest) (*ConfirmReply, error) {
	if err := s.t.checkPeer(ctx, r.From); err != nil {
		return nil, err
	}
	if len(r.Groups) != len(r.Terms) {
		return nil, dc.Errorf(dc.Invalid, "raft", "", "confirm names %d groups and %d terms", len(r.Groups), len(r.Terms))
	}
	reply := &ConfirmReply{Same: make([]bool, len(r.Groups))}
	s.t.mu.RLock()
	defer s.t.mu.RUnlock()
	for i, g := range r.Groups {
		l, ok := s.t.lanes[dc.GroupID(g)]
		reply.Same[i] = ok && l.replica != nil && l.replica.CurrentTerm() == r.Terms[i]
	}
	return reply, nil
}

// Progress tells how far this node's replica is.
func (s service) Progress(ctx context.Context, r *ProgressRequest) (*ProgressReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	applied, last := l.replica.Progress()
	return &ProgressReply{Applied: applied, LastIndex: last, Term: l.replica.CurrentTerm()}, nil
}

func header(from uint64) raft.RPCHeader {
	id := []byte(dc.NodeID(from).String())
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: id, Addr: id}
}

func encodeEntries(logs []*raft.Log) []*Entry {
	out := make([]*Entry, len(logs))
	for i, l := range logs {
		out[i] = &Entry{Index: l.Index, Term: l.Term, Type: uint32(l.Type), Data: l.Data, Extensions: l.Extensions, AppendedNs: l.AppendedAt.UnixNano()}
	}
	return out
}

func decodeEntries(entries []*Entry) []*raft.Log {
	out := make([]*raft.Log, len(entries))
	for i, e := range entries {
		out[i] = &raft.Log{Index: e.Index, Term: e.Term, Type: raft.LogType(e.Type), Data: e.Data, Extensions: e.Extensions, AppendedAt: time.Unix(0, e.AppendedNs)}
	}
	return out
}
