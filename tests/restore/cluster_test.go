package restore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/consensus"
	"missingos/consensus/transport"
	"missingos/srv/dc"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Badger's dependencies keep these for the life of the process.
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const group = dc.GroupID(7)

// quick elections, and a log that forgets what is in a snapshot.
var timing = consensus.Timing{Heartbeat: 600 * time.Millisecond, Commit: 50 * time.Millisecond, TrailingEntries: 1}

// table is a state machine whose commands are "key value".
type table struct{}

func (table) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	key, value, _ := strings.Cut(string(body), " ")
	tx.Set([]byte(key), []byte(value))
	return nil, nil
}

// replicated shows a shard to consensus, as srv/node does, and tells of the steps of a restore.
type replicated struct {
	*storage.Shard
	step func(string)
}

func (r replicated) Apply(entries []consensus.Entry) [][]consensus.Result {
	in := make([]storage.Entry, len(entries))
	for i, e := range entries {
		in[i] = storage.Entry{Index: e.Index, Term: e.Term, Clock: e.Clock, Commands: e.Commands}
	}
	out := make([][]consensus.Result, len(entries))
	for i, results := range r.Shard.Apply(in) {
		for _, res := range results {
			out[i] = append(out[i], consensus.Result{Body: res.Body, Err: res.Err})
		}
	}
	return out
}

func (r replicated) Hold(at, atLeast dc.Index) (consensus.HeldState, error) {
	h, err := r.Shard.Hold(at, atLeast)
	if err != nil {
		return nil, err
	}
	return held{h}, nil
}

func (r replicated) Restore(ctx context.Context, atLeast dc.Index, fetch consensus.Fetch) error {
	r.step("asked")
	err := r.Shard.Restore(ctx, atLeast, func(ctx context.Context, p storage.Pull) (io.ReadCloser, error) {
		r.step(fmt.Sprintf("fetch, goes on %v", p.At != 0))
		return fetch(ctx, consensus.Pull{Format: uint32(p.Format), At: p.At, After: p.After})
	})
	if err == nil {
		r.step("restored, not recorded")
	}
	return err
}

type held struct{ *storage.Held }

func (h held) Index() dc.Index { return h.Held.Index }

func (h held) WriteSnapshot(ctx context.Context, p consensus.Pull, w io.Writer) error {
	return h.Held.WriteSnapshot(ctx, storage.Pull{Format: int(p.Format), At: p.At, After: p.After}, w)
}

// A process is one life of a node.
type process struct {
	node  dc.NodeID
	dir   string
	host  *consensus.Host
	local *rpc.Local
	shard *storage.Shard
	group *consensus.Group
}

// cluster is three nodes.
type cluster struct {
	t   *testing.T
	dir string

	mu    sync.Mutex
	nodes map[dc.NodeID]*process
	pulls []string                                           // streams of state that were opened: "n2 from n1"
	bytes int                                                // and what they carried
	cut   func(n int, from dc.NodeID, bytes int) (stop bool) // tells whether the nth breaks, having carried bytes
	step  func(string)                                       // of node 3
	old   bool                                               // senders are of the version before pulls could go on
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, dir: t.TempDir(), nodes: map[dc.NodeID]*process{}}
	for n := dc.NodeID(1); n <= 3; n++ {
		c.start(n, c.home(n))
	}
	t.Cleanup(func() {
		for n := dc.NodeID(1); n <= 3; n++ {
			c.stop(n)
		}
	})
	return c
}

// home is where a node begins.
func (c *cluster) home(n dc.NodeID) string { return filepath.Join(c.dir, n.String()) }

func (c *cluster) start(n dc.NodeID, dir string) *process {
	c.t.Helper()
	fatal := func(err error) { c.t.Errorf("node %s: fatal: %v", n, err) }
	p := &process{node: n, dir: dir, local: rpc.NewLocal()}
	var err error
	if p.shard, err = storage.Open(filepath.Join(dir, "shard"), table{}, storage.Config{MemTableBytes: 4 * dc.MiB, Fatal: fatal}); err != nil {
		c.t.Fatal(err)
	}
	p.host = consensus.NewHost(consensus.HostConfig{
		Node: n, Timing: timing, LogDir: filepath.Join(dir, "log"), Fatal: fatal, SnapshotRate: 64 * dc.MiB,
		Dial: func(to dc.NodeID) (grpc.ClientConnInterface, error) { return &conn{c, n, to}, nil },
	})
	p.host.Register(p.local)
	c.mu.Lock()
	c.nodes[n] = p
	c.mu.Unlock()
	step := func(name string) {
		c.mu.Lock()
		f := c.step
		c.mu.Unlock()
		if n == 3 && f != nil {
			f(name)
		}
	}
	p.group, err = p.host.Open(consensus.GroupConfig{
		ID: group, Dir: filepath.Join(dir, "raft"), Machine: replicated{p.shard, step}, Bootstrap: []dc.NodeID{1, 2, 3},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// stop ends a node as a crash would: nothing is handed over.
func (c *cluster) stop(n dc.NodeID) {
	c.t.Helper()
	c.mu.Lock()
	p := c.nodes[n]
	delete(c.nodes, n)
	c.mu.Unlock()
	if p == nil {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.host.Close(now); err != nil {
		c.t.Errorf("close %s: %v", n, err)
	}
	if err := p.shard.Close(); err != nil {
		c.t.Errorf("close %s: %v", n, err)
	}
}

func (c *cluster) process(n dc.NodeID) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[n]
}

func (c *cluster) leader() *process {
	c.t.Helper()
	var found *process
	eventually(c.t, func() bool {
		for n := dc.NodeID(1); n <= 3 && found == nil; n++ {
			if p := c.process(n); p != nil && p.group != nil && p.group.IsLeader() {
				found = p
			}
		}
		return found != nil
	})
	return found
}

// put writes rows that do not compress, a row a command.
func (c *cluster) put(rows int, dice *rand.Rand) {
	c.t.Helper()
	for range rows {
		var b strings.Builder
		fmt.Fprintf(&b, "k%03d ", dice.IntN(400))
		for b.Len() < 20_000 {
			fmt.Fprintf(&b, "%x", dice.Uint64())
		}
		eventually(c.t, func() bool {
			ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
			defer cancel()
			_, err := c.leader().group.Propose(ctx, command.Encode(dc.RequestID{}, []byte(b.String())))
			return err == nil
		})
	}
}

// level waits until node n has the state of the leader, and compares the two.
func (c *cluster) level(n dc.NodeID) {
	c.t.Helper()
	lead := c.leader()
	eventually(c.t, func() bool { return c.process(n).shard.Applied() == lead.shard.Applied() })
	if c.hash(c.process(n)) != c.hash(lead) {
		c.t.Errorf("node %s has another state than the leader", n)
	}
}

func (c *cluster) hash(p *process) [32]byte {
	c.t.Helper()
	h, err := p.shard.Hash()
	if err != nil {
		c.t.Fatal(err)
	}
	return h
}

// compact has the nodes that are up forget the log.
func (c *cluster) compact() {
	c.t.Helper()
	for n := dc.NodeID(1); n <= 3; n++ {
		if p := c.process(n); p != nil {
			if err := p.group.Snapshot(); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so within 30 s")
		}
	}
}

// conn is a connection from one node to another.
type conn struct {
	c        *cluster
	from, to dc.NodeID
}

func (k *conn) peer() (*rpc.Local, error) {
	p := k.c.process(k.to)
	if p == nil {
		return nil, dc.Errorf(dc.Unavailable, "dial", k.to.String(), "the node is down")
	}
	return p.local, nil
}

func (k *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	l, err := k.peer()
	if err != nil {
		return err
	}
	if _, hold := args.(*transport.HoldRequest); hold && k.c.old {
		return dc.Errorf(dc.Unsupported, "call", method, "this node does not serve it")
	}
	return l.Invoke(ctx, method, args, reply, opts...)
}

func (k *conn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l, err := k.peer()
	if err != nil {
		return nil, err
	}
	s, err := l.NewStream(ctx, d, method, opts...)
	if err != nil {
		return nil, err
	}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	k.c.pulls = append(k.c.pulls, fmt.Sprintf("%s from %s", k.from, k.to))
	return &stream{ClientStream: s, k: k, number: len(k.c.pulls) - 1}, nil
}

// stream is a stream of state that may break.
type stream struct {
	grpc.ClientStream
	k      *conn
	number int
	bytes  int
}

func (s *stream) SendMsg(m any) error {
	if p, ok := m.(*transport.PullRequest); ok && s.k.c.old {
		m = &transport.PullRequest{From: p.From, Group: p.Group}
	}
	return s.ClientStream.SendMsg(m)
}

func (s *stream) RecvMsg(m any) error {
	if s.k.c.process(s.k.to) == nil {
		return dc.Errorf(dc.Unavailable, "receive", s.k.to.String(), "the node is down")
	}
	err := s.ClientStream.RecvMsg(m)
	if chunk, ok := m.(*transport.PullChunk); ok && err == nil {
		if s.k.c.old {
			chunk.Version = 0
		}
		s.bytes += len(chunk.Data)
		s.k.c.mu.Lock()
		s.k.c.bytes += len(chunk.Data)
		cut := s.k.c.cut
		s.k.c.mu.Unlock()
		if cut != nil && cut(s.number, s.k.to, s.bytes) {
			return dc.Errorf(dc.Unavailable, "receive", s.k.to.String(), "the connection is broken")
		}
	}
	return err
}

// pulled gives what was pulled since the last call.
func (c *cluster) pulled() (streams []string, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	streams, bytes = slices.Clone(c.pulls), c.bytes
	c.pulls, c.bytes = nil, 0
	return streams, bytes
}

// clone copies a node's directory as a killed process would leave it.
func clone(t *testing.T, dir string) string {
	t.Helper()
	for range 100 {
		to := t.TempDir()
		before := listing(t, dir)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(dir, path)
			if d.IsDir() {
				return os.MkdirAll(filepath.Join(to, rel), 0o700)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(to, rel), b, 0o600)
		})
		if err == nil && listing(t, dir) == before {
			return to
		}
	}
	t.Fatal("the directory never stands still")
	return ""
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		fmt.Fprintln(&b, path, err)
		if filepath.Base(path) == "MANIFEST" {
			content, _ := os.ReadFile(path)
			b.Write(content)
		}
		return nil
	})
	return b.String()
}
