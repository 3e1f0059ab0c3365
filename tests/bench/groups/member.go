package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/consensus"
	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// memberConfig is what a node is told in its environment.
type memberConfig struct {
	Node        dc.NodeID
	Dir         string
	Groups      int
	ShelveAfter time.Duration
}

// An order is a line that a node reads, an answer one that it writes: JSON both.
type order struct {
	Do    string               // start, state, write, profile, stop
	Peers map[dc.NodeID]string // of start
	File  string               // of profile
	Time  time.Duration        // of profile
}

type answer struct {
	Err        string
	Address    string // where the node listens; its first line
	Led        int    // groups that the node leads and is ready in
	Known      int    // groups whose leader it knows
	Goroutines int
	Heap       uint64 // bytes in use of Go's heap
	Stacks     uint64
	Writes     int // made by write and answered
	Refused    int // not made, or not answered
	Wrong      int // answered with another count than expected
	Sum        int // of the counts answered
	Took       time.Duration
	Slowest    time.Duration
}

// member is one node: the process's whole content.
type member struct {
	cfg   memberConfig
	host  *consensus.Host
	serve *grpc.Server

	mu    sync.Mutex
	peers map[dc.NodeID]string
	conns map[dc.NodeID]*grpc.ClientConn

	shards []*storage.Shard
	groups []*consensus.Group
	client uint64
	seq    uint64
}

// runMember serves orders from stdin until it is told to stop.
func runMember(cfg memberConfig, in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	m := &member{cfg: cfg, conns: map[dc.NodeID]*grpc.ClientConn{}, client: rand.Uint64() | 1}
	m.host = consensus.NewHost(consensus.HostConfig{
		Node: cfg.Node, LogDir: filepath.Join(cfg.Dir, "log"), Dial: m.dial, Fatal: fatal, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	m.serve = grpc.NewServer()
	m.host.Register(m.serve)
	var serving sync.WaitGroup
	serving.Go(func() { _ = m.serve.Serve(listener) })
	defer serving.Wait()
	defer m.serve.Stop()
	answers := json.NewEncoder(out)
	if err := answers.Encode(answer{Address: listener.Addr().String()}); err != nil {
		return err
	}
	orders := json.NewDecoder(bufio.NewReader(in))
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			return errors.Join(err, m.close())
		}
		a, err := m.obey(o)
		if err != nil {
			a.Err = err.Error()
		}
		if err := answers.Encode(a); err != nil || o.Do == "stop" {
			return err
		}
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench-groups: fatal:", err)
	os.Exit(1)
}

func (m *member) obey(o order) (answer, error) {
	switch o.Do {
	case "start":
		m.mu.Lock()
		m.peers = o.Peers
		m.mu.Unlock()
		return answer{}, m.open()
	case "state":
		return m.state(), nil
	case "write":
		return m.write(), nil
	case "profile":
		return answer{}, profile(o.File, o.Time)
	case "stop":
		return answer{}, m.close()
	}
	return answer{}, fmt.Errorf("unknown order %q", o.Do)
}

func (m *member) dial(n dc.NodeID) (grpc.ClientConnInterface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cc := m.conns[n]; cc != nil {
		return cc, nil
	}
	cc, err := grpc.NewClient("passthrough:///"+m.peers[n], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		m.conns[n] = cc
	}
	return cc, err
}

// open opens all groups.
func (m *member) open() error {
	var nodes []dc.NodeID
	for n := range m.peers {
		nodes = append(nodes, n)
	}
	for i := range m.cfg.Groups {
		id := dc.GroupID(i + 1)
		dir := filepath.Join(m.cfg.Dir, id.String())
		shard, err := storage.Open(filepath.Join(dir, "shard"), counter{}, storage.Config{Fatal: fatal, ShelveAfter: m.cfg.ShelveAfter})
		if err != nil {
			return err
		}
		g, err := m.host.Open(consensus.GroupConfig{
			ID: id, Dir: filepath.Join(dir, "raft"), Machine: machine{shard}, Bootstrap: nodes,
			Lead: func(ctx context.Context) { <-ctx.Done() },
		})
		if err != nil {
			return errors.Join(err, shard.Close())
		}
		m.shards, m.groups = append(m.shards, shard), append(m.groups, g)
	}
	return nil
}

func (m *member) state() answer {
	var a answer
	for _, g := range m.groups {
		if g.IsLeader() {
			a.Led++
		}
		if n, _ := g.Leader(); n != 0 {
			a.Known++
		}
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	a.Goroutines, a.Heap, a.Stacks = runtime.NumGoroutine(), mem.HeapInuse, mem.StackInuse
	return a
}

// write counts every group that this node leads up by one, four at a time.
func (m *member) write() answer {
	var (
		a     answer
		mu    sync.Mutex
		wg    sync.WaitGroup
		slots = make(chan struct{}, 4)
	)
	began := time.Now()
	for i, g := range m.groups {
		if !g.IsLeader() {
			continue
		}
		m.seq++
		id := dc.RequestID{Client: m.client, Seq: m.seq, Done: max(1, m.seq-min(m.seq, 1000)), Issued: g.Clock()}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			start := time.Now()
			was, now, err := m.countUp(g, m.shards[i], id)
			took := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				a.Refused++
				fmt.Fprintln(os.Stderr, "bench-groups:", g.ID(), "after", took.Round(time.Millisecond), err)
			case now != was+1:
				a.Wrong++
			}
			if err == nil {
				a.Writes, a.Sum = a.Writes+1, a.Sum+int(now)
			}
			a.Slowest = max(a.Slowest, took)
		})
	}
	wg.Wait()
	a.Took = time.Since(began)
	return a
}

func (m *member) countUp(g *consensus.Group, shard *storage.Shard, id dc.RequestID) (was, now uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.ReadBarrier(ctx); err != nil {
		return 0, 0, err
	}
	err = shard.View(func(r storage.Reader) error {
		was = count(r)
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	r, err := g.Propose(ctx, command.Encode(id, []byte{1}))
	if err = errors.Join(err, r.Err); err != nil {
		return was, 0, err
	}
	return was, binary.BigEndian.Uint64(r.Body), nil
}

func profile(file string, d time.Duration) error {
	cpu, err := os.Create(file + ".cpu")
	if err != nil {
		return err
	}
	defer cpu.Close()
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return err
	}
	time.Sleep(d)
	pprof.StopCPUProfile()
	heap, err := os.Create(file + ".heap")
	if err != nil {
		return err
	}
	defer heap.Close()
	runtime.GC()
	if err := pprof.WriteHeapProfile(heap); err != nil {
		return err
	}
	stacks, err := os.Create(file + ".goroutines")
	if err != nil {
		return err
	}
	defer stacks.Close()
	return pprof.Lookup("goroutine").WriteTo(stacks, 1)
}

// close ends without handing over: the others end too.
func (m *member) close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := m.host.Close(ctx)
	var wg sync.WaitGroup
	errs := make([]error, len(m.shards))
	slots := make(chan struct{}, 4)
	for i, s := range m.shards {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = s.Close()
			<-slots
		})
	}
	wg.Wait()
	for _, cc := range m.conns {
		err = errors.Join(err, cc.Close())
	}
	return errors.Join(append(errs, err)...)
}

// counter is a state machine with one row, a number, that each command counts up.
type counter struct{}

func count(r storage.Reader) uint64 {
	if v, ok := r.Get([]byte("count")); ok {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Apply implements storage.Machine.
func (counter) Apply(tx storage.Tx, _ []byte) ([]byte, error) {
	v := binary.BigEndian.AppendUint64(nil, count(tx)+1)
	tx.Set([]byte("count"), v)
	return v, nil
}

// machine shows a shard to consensus, as srv/node does.
type machine struct{ *storage.Shard }

// Apply implements consensus.StateMachine.
func (m machine) Apply(entries []consensus.Entry) [][]consensus.Result {
	in := make([]storage.Entry, len(entries))
	for i, e := range entries {
		in[i] = storage.Entry{Index: e.Index, Term: e.Term, Clock: e.Clock, Commands: e.Commands}
	}
	out := make([][]consensus.Result, len(entries))
	for i, results := range m.Shard.Apply(in) {
		for _, r := range results {
			out[i] = append(out[i], consensus.Result{Body: r.Body, Err: r.Err})
		}
	}
	return out
}

// Hold implements consensus.StateMachine.
func (m machine) Hold(at, atLeast dc.Index) (consensus.HeldState, error) {
	h, err := m.Shard.Hold(at, atLeast)
	if err != nil {
		return nil, err
	}
	return heldState{h}, nil
}

// Restore implements consensus.StateMachine.
func (m machine) Restore(ctx context.Context, atLeast dc.Index, fetch consensus.Fetch) error {
	return m.Shard.Restore(ctx, atLeast, func(ctx context.Context, p storage.Pull) (io.ReadCloser, error) {
		return fetch(ctx, consensus.Pull{Format: uint32(p.Format), At: p.At, After: p.After})
	})
}

// heldState shows a held state of a shard to consensus.
type heldState struct{ *storage.Held }

// Index implements consensus.HeldState.
func (h heldState) Index() dc.Index { return h.Held.Index }

// WriteSnapshot implements consensus.HeldState.
func (h heldState) WriteSnapshot(ctx context.Context, p consensus.Pull, w io.Writer) error {
	return h.Held.WriteSnapshot(ctx, storage.Pull{Format: int(p.Format), At: p.At, After: p.After}, w)
}
