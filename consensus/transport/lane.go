package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// A Lane is one group's raft.Transport over the node's connections.
type Lane struct {
	t         *Transport
	group     dc.GroupID
	replica   Replica
	consumer  chan raft.RPC
	heartbeat atomic.Pointer[func(raft.RPC)]
	beating   atomic.Bool   // a heartbeat is with Raft
	turn      chan struct{} // full while a message that may change the log is with Raft
	silent    atomic.Bool   // the watchdog found this replica's disk stalled: it must not keep leading
	ctx       context.Context
	cancel    context.CancelFunc
	closing   sync.Once

	mu      sync.Mutex     // of waiting against Close, and of peers
	waiting sync.WaitGroup // turns whose callers gave up
	peers   map[dc.NodeID]*peer
}

var (
	_ raft.Transport   = (*Lane)(nil)
	_ raft.WithPreVote = (*Lane)(nil)
	_ raft.WithClose   = (*Lane)(nil)
)

var errSilent = errors.New("this replica's disk is stalled: it keeps quiet so that another leads")

// Open adds a group; replica answers for it. Messages for a group that is not open are refused.
func (t *Transport) Open(g dc.GroupID, replica Replica) *Lane {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Lane{t: t, group: g, replica: replica, consumer: make(chan raft.RPC, 16), turn: make(chan struct{}, 1), ctx: ctx, cancel: cancel}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lanes[g] = l
	return l
}

// Close ends the group's messages, in both directions.
func (l *Lane) Close() error {
	l.closing.Do(func() {
		l.mu.Lock()
		l.cancel()
		l.mu.Unlock()
		l.waiting.Wait()
		l.t.mu.Lock()
		defer l.t.mu.Unlock()
		if l.t.lanes[l.group] == l {
			delete(l.t.lanes, l.group)
		}
	})
	return nil
}

// Silence makes the lane refuse to send heartbeats and entries, or lets it speak again.
func (l *Lane) Silence(on bool) { l.silent.Store(on) }

// deliver hands a request to Raft and waits for its response.
func (l *Lane) deliver(ctx context.Context, cmd any, body []byte, heartbeat bool) (any, error) {
	ch, err := l.hand(ctx, cmd, body, heartbeat)
	if err != nil {
		return nil, err
	}
	select {
	case resp := <-ch:
		return resp.Response, resp.Error
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.ctx.Done():
		return nil, raft.ErrTransportShutdown
	}
}

// hand gives a request to Raft, which answers by the channel.
func (l *Lane) hand(ctx context.Context, cmd any, body []byte, heartbeat bool) (<-chan raft.RPCResponse, error) {
	ch := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: cmd, RespChan: ch}
	if body != nil {
		rpc.Reader = bytes.NewReader(body)
	}
	if fast := l.heartbeat.Load(); heartbeat && fast != nil {
		(*fast)(rpc)
		return ch, nil
	}
	select {
	case l.consumer <- rpc:
		return ch, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.ctx.Done():
		return nil, raft.ErrTransportShutdown
	}
}

// inTurn is deliver for what may change the log: it waits until Raft has answered all such before, looks at the message with first, which may
// answer it, and hands it to Raft. If the caller gives up meanwhile, the turn goes on until Raft has answered.
func (l *Lane) inTurn(ctx context.Context, cmd any, body []byte, first func() (any, error)) (any, error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.ctx.Done():
		return nil, raft.ErrTransportShutdown
	}
	if resp, err := first(); resp != nil || err != nil {
		<-l.turn
		return resp, err
	}
	ch, err := l.hand(ctx, cmd, body, false)
	if err != nil {
		<-l.turn
		return nil, err
	}
	select {
	case resp := <-ch:
		<-l.turn
		return resp.Response, resp.Error
	case <-ctx.Done():
		l.later(ch)
		return nil, ctx.Err()
	case <-l.ctx.Done():
		return nil, raft.ErrTransportShutdown
	}
}

// later ends a turn when Raft has answered.
func (l *Lane) later(ch <-chan raft.RPCResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	l.waiting.Go(func() {
		select {
		case <-ch:
			<-l.turn
		case <-l.ctx.Done():
		}
	})
}

// Stand has this node's own replica stand for election at once. It returns when Raft has taken note, or ctx ends.
func (l *Lane) Stand(ctx context.Context) {
	_, _ = l.deliver(ctx, &raft.TimeoutNowRequest{RPCHeader: header(l.from())}, nil, false) // it then stands by its timeout
}

// call runs f against the target with a deadline.
func (l *Lane) call(target raft.ServerAddress, timeout time.Duration, f func(ctx context.Context, c RaftClient) error) error {
	n, err := dc.ParseNodeID(string(target))
	if err != nil {
		return err
	}
	c, err := l.t.client(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	return f(ctx, c)
}

func (l *Lane) from() uint64 { return uint64(l.t.cfg.Node) }

// Consumer is where Raft takes requests from.
func (l *Lane) Consumer() <-chan raft.RPC { return l.consumer }

// LocalAddr is this node's id.
func (l *Lane) LocalAddr() raft.ServerAddress { return raft.ServerAddress(l.t.cfg.Node.String()) }

// AppendEntriesPipeline is refused: batches of up to 512 entries make a round trip at a time fast enough, and a follower that stalls
// cannot leave a pipeline behind that never recovers (hashicorp/raft #612).
func (l *Lane) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries sends entries, or a heartbeat.
func (l *Lane) AppendEntries(_ raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if l.silent.Load() {
		return errSilent
	}
	n, err := dc.ParseNodeID(string(target))
	if err != nil {
		return err
	}
	// Raft counts entries, not bytes. It reads back from args what was sent, so cutting them here is enough for it to go on from there.
	args.Entries = upTo(args.Entries, maxAppendBytes)
	r := &AppendRequest{
		From: l.from(), Group: uint64(l.group), Term: args.Term, PrevIndex: args.PrevLogEntry, PrevTerm: args.PrevLogTerm,
		Commit: args.LeaderCommitIndex, Entries: encodeEntries(args.Entries),
	}
	var reply *AppendReply
	switch life := l.t.beats(n).life.Load(); {
	case isHeartbeat(r):
		reply, err = l.beat(n, r)
	case l.repeats(n, r, life):
		reply = &AppendReply{Term: r.Term, LastIndex: r.PrevIndex, Success: true}
	default:
		reply, err = l.append(target, r)
		if err == nil && reply.Success && len(r.Entries) == 0 {
			l.acknowledged(n, r, life)
		} else {
			l.forget(n)
		}
	}
	if err != nil {
		return err
	}
	*resp = raft.AppendEntriesResponse{
		RPCHeader: headerOf(target), Term: reply.Term, LastLog: reply.LastIndex, Success: reply.Success, NoRetryBackoff: reply.NoRetryBackoff,
	}
	return nil
}

// append sends entries, or news of the commit index.
func (l *Lane) append(target raft.ServerAddress, r *AppendRequest) (reply *AppendReply, err error) {
	err = l.call(target, appendTimeout, func(ctx context.Context, c RaftClient) (err error) {
		reply, err = c.Append(ctx, r)
		if err == nil && reply.Success && l.replica != nil {
			// Raft counts this replica's own copy already: it must be on disk before another's can make a majority with it.
			err = l.replica.Durable(ctx, r.PrevIndex+uint64(len(r.Entries)))
		}
		return err
	})
	return reply, err
}

// beat sends a heartbeat together with those of other groups.
func (l *Lane) beat(n dc.NodeID, r *AppendRequest) (*AppendReply, error) {
	reply, err := l.t.beats(n).send(l.ctx, r)
	if err == nil && reply.Success {
		l.answered(n, r.Term)
	} else {
		l.forget(n)
	}
	return reply, err
}

// upTo gives the first entries that fit into limit bytes, at least one if there is one.
func upTo(entries []*raft.Log, limit int) []*raft.Log {
	size := 0
	for i, e := range entries {
		if size += len(e.Data); size > limit && i > 0 {
			return entries[:i]
		}
	}
	return entries
}

// RequestVote asks for a vote.
func (l *Lane) RequestVote(_ raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return l.call(target, voteTimeout, func(ctx context.Context, c RaftClient) error {
		reply, err := c.Vote(ctx, &VoteRequest{
			From: l.from(), Group: uint64(l.group), Term: args.Term, LastIndex: args.LastLogIndex, LastTerm: args.LastLogTerm, Transfer: args.LeadershipTransfer,
		})
		if err == nil {
			*resp = raft.RequestVoteResponse{RPCHeader: headerOf(target), Term: reply.Term, Granted: reply.Granted}
		}
		return err
	})
}

// RequestPreVote asks whether a vote would be given.
func (l *Lane) RequestPreVote(_ raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return l.call(target, voteTimeout, func(ctx context.Context, c RaftClient) error {
		reply, err := c.Vote(ctx, &VoteRequest{
			From: l.from(), Group: uint64(l.group), Term: args.Term, LastIndex: args.LastLogIndex, LastTerm: args.LastLogTerm, Pre: true,
		})
		if err == nil {
			*resp = raft.RequestPreVoteResponse{RPCHeader: headerOf(target), Term: reply.Term, Granted: reply.Granted}
		}
		return err
	})
}

// InstallSnapshot offers a snapshot: data is the manifest, a few hundred bytes; the follower pulls the rows before it answers.
func (l *Lane) InstallSnapshot(_ raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	manifest, err := io.ReadAll(io.LimitReader(data, args.Size))
	if err != nil {
		return err
	}
	return l.call(target, installTimeout, func(ctx context.Context, c RaftClient) error {
		reply, err := c.InstallSnapshot(ctx, &InstallSnapshotRequest{
			From: l.from(), Group: uint64(l.group), Term: args.Term, LastIndex: args.LastLogIndex, LastTerm: args.LastLogTerm,
			Configuration: args.Configuration, ConfigurationIndex: args.ConfigurationIndex, Version: int32(args.SnapshotVersion), Manifest: manifest,
		})
		if err == nil {
			*resp = raft.InstallSnapshotResponse{RPCHeader: headerOf(target), Term: reply.Term, Success: reply.Success}
		}
		return err
	})
}

// TimeoutNow orders the target to stand for election.
func (l *Lane) TimeoutNow(_ raft.ServerID, target raft.ServerAddress, _ *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return l.call(target, voteTimeout, func(ctx context.Context, c RaftClient) error {
		_, err := c.TimeoutNow(ctx, &TimeoutNowRequest{From: l.from(), Group: uint64(l.group)})
		if err == nil {
			*resp = raft.TimeoutNowResponse{RPCHeader: headerOf(target)}
		}
		return err
	})
}

// EncodePeer and DecodePeer give a peer's form in votes and configurations: its node id.
func (l *Lane) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer is EncodePeer's inverse.
func (l *Lane) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler sets Raft's fast path.
func (l *Lane) SetHeartbeatHandler(cb func(raft.RPC)) {
	if cb == nil {
		l.heartbeat.Store(nil)
		return
	}
	l.heartbeat.Store(&cb)
}

func headerOf(target raft.ServerAddress) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(target), Addr: []byte(target)}
}
