// Package simdisk is a disk in memory that forgets what was not synced, for simulations of the write-ahead log: power cuts that keep any part of the
// unsynced writes, sectors torn apart, faults at any operation.
package simdisk

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"missingos/consensus/logstore"
)

const sector = 512

// Disk is a directory of files. Its zero value is not ready; see New.
type Disk struct {
	// Before, if set, is asked before each operation ("write", "sync", "syncdir", "rename", "remove", "open"); its error is the operation's.
	Before func(op, name string) error

	mu      sync.Mutex
	names   map[string]*node   // as seen
	durable map[string]*node   // as of the last Sync of the directory
	journal []map[string]*node // as seen after each change since
}

// node is a file's content.
type node struct {
	seen   []byte
	synced []byte
	dirty  map[int]bool // sectors written since
}

var _ logstore.FS = (*Disk)(nil)

// New makes an empty disk.
func New() *Disk { return &Disk{names: map[string]*node{}, durable: map[string]*node{}} }

func (d *Disk) before(op, name string) error {
	d.mu.Lock()
	ask := d.Before
	d.mu.Unlock()
	if ask == nil {
		return nil
	}
	return ask(op, name)
}

// Watch sets Before on a disk that is in use.
func (d *Disk) Watch(before func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Before = before
}

// PowerCut gives the disk as it is after the power failed now: what was synced, and of the rest whatever rng says, by sectors and by names.
func (d *Disk) PowerCut(rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := New()
	names := d.durable
	if n := rng.IntN(len(d.journal) + 1); n > 0 { // a file system's journal keeps changes of names in order
		names = d.journal[n-1]
	}
	copies := map[*node]*node{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		if copies[n] == nil {
			copies[n] = n.after(rng)
		}
		after.names[name], after.durable[name] = copies[n], copies[n]
	}
	return after
}

func (n *node) after(rng *rand.Rand) *node {
	b := slices.Clone(n.synced)
	if len(n.seen) > len(b) && rng.IntN(2) == 0 { // its length may have been written without its content
		b = append(b, make([]byte, len(n.seen)-len(b))...)
	}
	for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
		from, to := s*sector, min((s+1)*sector, len(n.seen))
		if to <= len(b) && from < to && rng.IntN(2) == 0 {
			copy(b[from:to], n.seen[from:to])
		}
	}
	return &node{seen: b, synced: slices.Clone(b), dirty: map[int]bool{}}
}

// Kill gives the disk as a process that is killed now leaves it: everything written is there.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := New()
	copies := map[*node]*node{}
	clone := func(n *node) *node {
		if copies[n] == nil {
			copies[n] = &node{seen: slices.Clone(n.seen), synced: slices.Clone(n.synced), dirty: maps.Clone(n.dirty)}
		}
		return copies[n]
	}
	for name, n := range d.names {
		after.names[name] = clone(n)
	}
	for name, n := range d.durable {
		after.durable[name] = clone(n)
	}
	for _, then := range d.journal {
		names := map[string]*node{}
		for name, n := range then {
			names[name] = clone(n)
		}
		after.journal = append(after.journal, names)
	}
	return after
}

// Flip inverts a byte of a file, on the disk and in memory.
func (d *Disk) Flip(name string, off int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[name]
	n.seen[off] ^= 0xff
	if off < len(n.synced) {
		n.synced[off] = n.seen[off]
	}
}

// Bytes is what a file holds.
func (d *Disk) Bytes(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.names[name]; n != nil {
		return slices.Clone(n.seen)
	}
	return nil
}

// Open implements logstore.FS.
func (d *Disk) Open(name string) (logstore.File, error) {
	if err := d.before("open", name); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		d.names[name] = &node{dirty: map[int]bool{}}
		d.changedLocked()
	}
	return &file{d, name, d.names[name]}, nil
}

// Rename implements logstore.FS.
func (d *Disk) Rename(from, to string) error {
	if err := d.before("rename", from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[from] == nil {
		return fmt.Errorf("rename %s: no such file", from)
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	d.changedLocked()
	return nil
}

// Remove implements logstore.FS.
func (d *Disk) Remove(name string) error {
	if err := d.before("remove", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	d.changedLocked()
	return nil
}

func (d *Disk) changedLocked() { d.journal = append(d.journal, maps.Clone(d.names)) }

// List implements logstore.FS.
func (d *Disk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names)), nil
}

// Sync implements logstore.FS.
func (d *Disk) Sync() error {
	if err := d.before("syncdir", ""); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable, d.journal = maps.Clone(d.names), nil
	return nil
}

type file struct {
	d    *Disk
	name string
	n    *node
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.n.seen)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.seen[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	if err := f.d.before("write", f.name); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if end := int(off) + len(b); end > len(f.n.seen) {
		f.n.seen = append(f.n.seen, make([]byte, end-len(f.n.seen))...)
	}
	copy(f.n.seen[off:], b)
	for s := int(off) / sector; s*sector < int(off)+len(b); s++ {
		f.n.dirty[s] = true
	}
	return len(b), nil
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.n.seen)), nil
}

func (f *file) Sync() error {
	if err := f.d.before("sync", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.n.synced = append(f.n.synced, make([]byte, len(f.n.seen)-len(f.n.synced))...)
	for s := range f.n.dirty {
		from, to := s*sector, min((s+1)*sector, len(f.n.seen))
		copy(f.n.synced[from:to], f.n.seen[from:to])
	}
	clear(f.n.dirty)
	return nil
}

func (f *file) Close() error { return nil }
