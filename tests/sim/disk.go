package sim

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"missingos/consensus"
	"missingos/consensus/logstore"
)

// disk is a log, a vote and a checkpoint of the state that outlive the process.
type disk struct {
	dir  string // what Raft's snapshot record is kept in
	life int

	mu   sync.Mutex
	logs map[uint64]raft.Log
	num  map[string]uint64
	val  map[string][]byte

	checkpoint []consensus.Entry // all that the state was made of when it was last made durable
}

var _ logstore.Store = (*disk)(nil)

func newDisk(dir string) *disk {
	return &disk{dir: dir, logs: map[uint64]raft.Log{}, num: map[string]uint64{}, val: map[string][]byte{}}
}

// left is what a process that is killed now leaves behind. What it had under way is not there, and what it goes on writing until it has ended goes
// to a disk that nobody reads: the record of snapshots included, or a ghost's record would name a checkpoint that its heir does not have. Held still
// together, because a record is written after its checkpoint and before the log is cut.
func (d *disk) left() (*disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	heir := fmt.Sprintf("%s.%d", strings.TrimSuffix(d.dir, fmt.Sprintf(".%d", d.life)), d.life+1)
	err := os.CopyFS(heir, os.DirFS(d.dir))
	for try := 0; errors.Is(err, os.ErrNotExist) && try < 100; try++ { // the ghost renames its record this very moment
		err = errors.Join(os.RemoveAll(heir), os.CopyFS(heir, os.DirFS(d.dir)))
	}
	if err != nil {
		return nil, err
	}
	return &disk{dir: heir, life: d.life + 1, logs: maps.Clone(d.logs), num: maps.Clone(d.num), val: maps.Clone(d.val), checkpoint: d.checkpoint}, nil
}

// write takes a disk's time and then happens whole.
func (d *disk) write(do func()) error {
	time.Sleep(time.Millisecond)
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	return nil
}

func (d *disk) bounds() (first, last uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.logs {
		if first == 0 || i < first {
			first = i
		}
		last = max(last, i)
	}
	return first, last
}

func (d *disk) FirstIndex() (uint64, error) { first, _ := d.bounds(); return first, nil }
func (d *disk) LastIndex() (uint64, error)  { _, last := d.bounds(); return last, nil }

func (d *disk) GetLog(index uint64, log *raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*log = l
	return nil
}

func (d *disk) StoreLog(log *raft.Log) error { return d.StoreLogs([]*raft.Log{log}) }

func (d *disk) StoreLogs(logs []*raft.Log) error {
	return d.write(func() {
		for _, l := range logs {
			d.logs[l.Index] = *l
		}
	})
}

func (d *disk) DeleteRange(first, last uint64) error {
	return d.write(func() {
		for i := first; i <= last; i++ {
			delete(d.logs, i)
		}
	})
}

func (d *disk) Set(key, val []byte) error {
	return d.write(func() { d.val[string(key)] = append([]byte(nil), val...) })
}

func (d *disk) Get(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.val[string(key)]
	if !ok {
		return nil, errors.New("not found")
	}
	return v, nil
}

func (d *disk) SetUint64(key []byte, val uint64) error {
	return d.write(func() { d.num[string(key)] = val })
}

func (d *disk) GetUint64(key []byte) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.num[string(key)]
	if !ok {
		return 0, errors.New("not found")
	}
	return v, nil
}

func (*disk) Stalled() time.Duration { return 0 }
func (*disk) Close() error           { return nil }
