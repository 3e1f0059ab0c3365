package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"missingos/consensus"
	"missingos/consensus/logstore"
	"missingos/consensus/logstore/simdisk"
)

// disk is what outlives a process: the write-ahead log, Raft's record of snapshots and a checkpoint of the state.
type disk struct {
	log  *simdisk.Disk
	dir  string // what the record is kept in
	life int
	slow *atomic.Int64 // how long a sync takes beyond a disk's time, nanoseconds; of all lives
	bad  atomic.Bool   // what is to be written or synced fails

	mu         sync.Mutex
	checkpoint []consensus.Entry // all that the state was made of when it was last made durable
}

func newDisk(dir string) *disk {
	return (&disk{log: simdisk.New(), dir: dir, slow: &atomic.Int64{}}).timed()
}

// timed gives each sync a disk's time, and the faults of a bad one.
func (d *disk) timed() *disk {
	d.log.Before = func(op, _ string) error {
		if d.bad.Load() && op != "open" {
			return syscall.EIO
		}
		if op == "sync" {
			time.Sleep(time.Millisecond + time.Duration(d.slow.Load()))
		}
		return nil
	}
	return d
}

// left is what a process that is killed now leaves behind; if cut is set the power fails with it, and what was not synced is there in part. What it
// goes on writing until it has ended goes to a disk that nobody reads: the record of snapshots included, or a ghost's record would name a checkpoint
// that its heir does not have. The log is taken first: a record is written before the log is cut behind it, and after its checkpoint.
func (d *disk) left(cut *rand.Rand) (*disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	log := d.log.Kill()
	if cut != nil {
		log = d.log.PowerCut(cut)
	}
	heir := fmt.Sprintf("%s.%d", strings.TrimSuffix(d.dir, fmt.Sprintf(".%d", d.life)), d.life+1)
	err := os.CopyFS(heir, os.DirFS(d.dir))
	for try := 0; errors.Is(err, os.ErrNotExist) && try < 100; try++ { // the ghost renames its record this very moment
		err = errors.Join(os.RemoveAll(heir), os.CopyFS(heir, os.DirFS(d.dir)))
	}
	if err != nil {
		return nil, err
	}
	return (&disk{log: log, dir: heir, life: d.life + 1, slow: d.slow, checkpoint: d.checkpoint}).timed(), nil
}

// write takes a disk's time and then happens whole.
func (d *disk) write(do func()) error {
	time.Sleep(time.Millisecond)
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	return nil
}

// unheard spares a ghost Raft's panic over a term that it cannot save: it has ended, but for its goroutines.
type unheard struct {
	logstore.Store
	dead *atomic.Bool
}

func (s unheard) SetUint64(key []byte, val uint64) error {
	if err := s.Store.SetUint64(key, val); err != nil && !s.dead.Load() {
		return err
	}
	return nil
}

// IsMonotonic says what the log says: Raft asks.
func (s unheard) IsMonotonic() bool { return s.Store.(raft.MonotonicLogStore).IsMonotonic() }

var _ raft.MonotonicLogStore = unheard{}
