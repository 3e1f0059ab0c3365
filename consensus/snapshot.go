package consensus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
	"missingos/srv/dc"
)

// manifest is what Raft carries as a snapshot: where to pull the rows from. The rows that a follower gets may be of a later index than
// the manifest's; entries up to there are then skipped by the state machine.
type manifest struct {
	Version int        `json:"version"`
	Group   dc.GroupID `json:"group"`
	Source  dc.NodeID  `json:"source"`
	Index   uint64     `json:"index"`
	Term    uint64     `json:"term"`
}

const manifestVersion = 1

// snapshotFile is the durable record of the latest snapshot: everything up to Index is on stable storage in the state machine, so the
// log up to there may go, and a restart need not apply it.
type snapshotFile struct {
	Index              uint64
	Term               uint64
	Configuration      raft.Configuration
	ConfigurationIndex uint64
}

// snapshots is the group's raft.SnapshotStore. It holds at most one snapshot. Listing one that is not durable would make Raft skip entries that
// the state machine lost, so a snapshot is published only after the state machine's checkpoint (own) or restore (installed) has returned.
type snapshots struct {
	path  string
	group dc.GroupID
	node  dc.NodeID

	mu      sync.Mutex
	current *snapshotFile
	pending *sink // installed by the leader, not yet restored
}

func openSnapshots(dir string, g dc.GroupID, n dc.NodeID) (*snapshots, error) {
	s := &snapshots{path: filepath.Join(dir, "SNAPSHOT"), group: g, node: n}
	b, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.current = &snapshotFile{}
	if err := json.Unmarshal(b, s.current); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return s, nil
}

func snapshotID(index, term uint64) string { return fmt.Sprintf("%d-%d", term, index) }

// Create begins a snapshot, of this replica or from the leader.
func (s *snapshots) Create(_ raft.SnapshotVersion, index, term uint64, c raft.Configuration, configIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{store: s, file: snapshotFile{Index: index, Term: term, Configuration: c, ConfigurationIndex: configIndex}}, nil
}

// List gives the durable snapshot, if there is one.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, nil
	}
	return []*raft.SnapshotMeta{s.meta(*s.current)}, nil
}

func (s *snapshots) meta(f snapshotFile) *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: snapshotID(f.Index, f.Term), Index: f.Index, Term: f.Term,
		Configuration: f.Configuration, ConfigurationIndex: f.ConfigurationIndex, Size: int64(len(s.manifest(f))),
	}
}

func (s *snapshots) manifest(f snapshotFile) []byte {
	b, err := json.Marshal(manifest{Version: manifestVersion, Group: s.group, Source: s.node, Index: f.Index, Term: f.Term})
	if err != nil {
		panic(err) // numbers only
	}
	return b
}

// Open gives a snapshot's manifest: the durable one's, or that which the leader just sent.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pending; p != nil && p.ID() == id {
		m := s.meta(p.file)
		m.Size = int64(p.body.Len())
		return m, io.NopCloser(bytes.NewReader(p.body.Bytes())), nil
	}
	if s.current == nil || snapshotID(s.current.Index, s.current.Term) != id {
		return nil, nil, fmt.Errorf("there is no snapshot %s", id)
	}
	return s.meta(*s.current), io.NopCloser(bytes.NewReader(s.manifest(*s.current))), nil
}

// publish makes f the snapshot that a restart sees. The state machine has made it durable before.
func (s *snapshots) publish(f snapshotFile) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && s.current.Index >= f.Index {
		return nil
	}
	if err := logstore.WriteFile(s.path, b); err != nil {
		return err
	}
	s.current = &f
	return nil
}

// offered is the configuration that came with the snapshot from the leader.
func (s *snapshots) offered() raft.Configuration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == nil {
		return raft.Configuration{}
	}
	return s.pending.file.Configuration
}

// restored publishes the snapshot that the leader sent, now that the state machine holds its rows.
func (s *snapshots) restored() error {
	s.mu.Lock()
	p := s.pending
	s.pending = nil
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return s.publish(p.file)
}

// sink collects a manifest.
type sink struct {
	store *snapshots
	file  snapshotFile
	body  bytes.Buffer
	own   bool // of this replica: the checkpoint is done, Close may publish
}

func (k *sink) Write(b []byte) (int, error) { return k.body.Write(b) }
func (k *sink) ID() string                  { return snapshotID(k.file.Index, k.file.Term) }
func (k *sink) Cancel() error               { return nil }

// Close publishes an own snapshot; one from the leader waits for its rows.
func (k *sink) Close() error {
	if k.own {
		return k.store.publish(k.file)
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	k.store.pending = k
	return nil
}

// ownSnapshot is a raft.FSMSnapshot: its substance is the state machine's checkpoint.
type ownSnapshot struct{ machine StateMachine }

// Persist makes the state durable and then lets the sink publish that fact.
func (o ownSnapshot) Persist(s raft.SnapshotSink) error {
	if err := o.machine.Checkpoint(); err != nil {
		return errors.Join(err, s.Cancel())
	}
	k, ok := s.(*sink)
	if !ok {
		return fmt.Errorf("unexpected snapshot sink %T", s)
	}
	k.own = true
	return k.Close()
}

// Release has nothing to release.
func (o ownSnapshot) Release() {}
