package synth

import (
	"context"
	"hash/fnv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/locktable"
	"missingos/srv/dc"
)

const (
	// RootID is the kernel's node id of the root directory.
	RootID = fuse.FUSE_ROOT_ID
	// IDBit is set in the node ids of all other synthetic files, so that a mount can tell them from datafs's.
	IDBit = uint64(1) << 63

	// SettleWait bounds how long a look-up waits for a [Settler].
	SettleWait = 100 * time.Millisecond

	// preferredIOBytes is st_blksize: stdio and shells gather that much before they write, so that a value, a command or a
	// message of up to this size arrives in one write(2), and is one commit.
	preferredIOBytes = 128 * dc.KiB
)

// A Server serves the synthetic files below one root directory to the kernel.
type Server struct {
	fuse.RawFileSystem // answers what is not implemented here
	door               *Door
	root               Dir
	started            time.Time // the times of files that have none
	locks              locktable.Table[string]

	mu         sync.Mutex
	nodes      map[uint64]*entry
	byKey      map[string]uint64
	lastNode   uint64
	handles    map[uint64]*open
	dirs       map[uint64]*dirHandle
	lastHandle uint64
	settling   []settling
	unsettled  atomic.Int64 // len(settling), to skip mu
}

// An entry is a node that the kernel knows.
type entry struct {
	node    Node
	key     string
	shared  bool   // found through byKey
	lookups uint64 // how many of them the kernel has not forgotten
}

// An open is a file handle that the kernel knows.
type open struct {
	h      Handle
	key    string
	stream bool
	// nonBlocking is what open(2) said. What fcntl(2) says later does not count: the Go runtime sets O_NONBLOCK on whatever epoll takes, and
	// would wait for ever for a readiness that FUSE cannot report.
	nonBlocking bool
	node        uint64
	opener      uint32 // the thread that opened it
	writes      bool
	fence       atomic.Pointer[dc.Fence] // what its writes are conditioned on

	mu     sync.Mutex
	owners map[uint64]struct{} // fcntl owners to whom h, a Locker, has given its lock
}

// settling is a change that comes into effect at a release.
type settling struct {
	room  string
	done  <-chan struct{}
	until time.Time
}

// NewServer serves root, whose node id is [RootID].
func NewServer(door *Door, root Dir) *Server {
	return &Server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		door:          door,
		root:          root,
		started:       time.Now(),
		nodes:         make(map[uint64]*entry),
		byKey:         make(map[string]uint64),
		handles:       make(map[uint64]*open),
		dirs:          make(map[uint64]*dirHandle),
	}
}

// String implements fuse.RawFileSystem.
func (s *Server) String() string { return "dc" }

// Close releases the handles that the kernel did not (its connection was cut), and with them their goroutines and locks. The
// server must serve no more.
func (s *Server) Close() {
	s.mu.Lock()
	left := s.handles
	s.handles = make(map[uint64]*open)
	s.nodes, s.byKey = make(map[uint64]*entry), make(map[string]uint64)
	s.mu.Unlock()
	for _, o := range left {
		o.h.Release()
	}
}

// Nodes is how many nodes the kernel knows; Handles how many files are open. For tests and for stat.
func (s *Server) Nodes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.nodes)
}

// Handles is how many files are open.
func (s *Server) Handles() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.handles)
}

// inode is the inode number for a key: stable, the same on every node of the cluster, below 1<<63 and above the mount's root.
func inode(key string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	ino := h.Sum64() &^ IDBit
	if ino <= RootID {
		ino += 2
	}
	return ino
}

// room is the first element of a key: which room of the tree a file belongs to.
func room(key string) string {
	first, _, _ := strings.Cut(key, "/")
	return first
}

func (s *Server) node(id uint64) (Node, bool) {
	if id == RootID {
		return s.root, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.nodes[id]
	if !ok {
		return nil, false
	}
	return e.node, true
}

func (s *Server) dir(id uint64) (Dir, fuse.Status) {
	n, ok := s.node(id)
	if !ok {
		return nil, fuse.Status(Errno(dc.Stale))
	}
	d, ok := n.(Dir)
	if !ok {
		return nil, fuse.ENOTDIR
	}
	return d, fuse.OK
}

// remember counts one more look-up of n and gives its id.
func (s *Server) remember(n Node) uint64 {
	key := n.Key()
	p, alone := n.(Parallel)
	alone = alone && p.Parallel()
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.byKey[key]
	if !ok || alone {
		s.lastNode++
		id = s.lastNode | IDBit
		s.nodes[id] = &entry{key: key, shared: !alone}
		if !alone {
			s.byKey[key] = id
		}
	}
	e := s.nodes[id]
	e.node = n
	e.lookups++
	return id
}

// Forget implements fuse.RawFileSystem.
func (s *Server) Forget(id, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.nodes[id]
	if !ok {
		return
	}
	if e.lookups > n {
		e.lookups -= n
		return
	}
	delete(s.nodes, id)
	if e.shared {
		delete(s.byKey, e.key)
	}
}

func (s *Server) addHandle(h Handle, node uint64, key string, in *fuse.InHeader, flags uint32) (uint64, *open) {
	st, ok := h.(Streamer)
	o := &open{
		h: h, key: key, stream: ok && st.Stream(), nonBlocking: flags&unix.O_NONBLOCK != 0,
		node: node, opener: in.Pid, writes: writes(flags),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastHandle++
	s.handles[s.lastHandle] = o
	return s.lastHandle, o
}

func (s *Server) handle(fh uint64) (*open, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.handles[fh]
	return o, ok
}

// noteSettling remembers that h has a change on its way.
func (s *Server) noteSettling(o *open) {
	st, ok := o.h.(Settler)
	if !ok {
		return
	}
	done := st.Settling()
	if done == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settling = append(s.settling, settling{room(o.key), done, time.Now().Add(SettleWait)})
	s.unsettled.Store(int64(len(s.settling)))
}

// settle waits for the changes that are on their way in the room of key.
func (s *Server) settle(ctx context.Context, key string) {
	if s.unsettled.Load() == 0 {
		return
	}
	now, name := time.Now(), room(key)
	var waits []settling
	s.mu.Lock()
	kept := s.settling[:0]
	for _, w := range s.settling {
		select {
		case <-w.done:
			continue
		default:
		}
		if now.After(w.until) {
			continue
		}
		kept = append(kept, w)
		if w.room == name {
			waits = append(waits, w)
		}
	}
	clear(s.settling[len(kept):])
	s.settling = kept
	s.unsettled.Store(int64(len(kept)))
	s.mu.Unlock()
	for _, w := range waits {
		timer := time.NewTimer(time.Until(w.until))
		select {
		case <-w.done:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}
