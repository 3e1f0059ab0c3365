package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"missingos/srv/dc"
)

// A generation is one Badger directory of a shard. A snapshot that is restored becomes the next generation; the old one is
// closed and removed when its last reader lets go.
//
// Large values: Badger keeps a value in its tables only up to 1 MiB and 15% of the memtable, and its value log has lost
// data (see the design note), so values over chunkBytes are cut into chunk rows "!v" key number, and the row
// itself, marked by largeValue, holds their count. Chunks and row have one version and are visible together.
type generation struct {
	db      *badger.DB // nil while shelved (shelf.go); changed under mu with no reader
	path    string
	awake   bool // compactors run; see quiet.go
	cache   *cache
	durable Mark
	clocked bool // CHECKPOINT has the clock

	large map[string]int // keys whose value is in chunks, and how many; used on the apply path only

	open *sync.WaitGroup // of the shard: one for each generation that is in use

	// The rest is guarded by the shard's mu.
	discarded uint64 // versions before this may be gone
	refs      int    // readers, plus one while it is current
	pins      map[dc.Index]int
	remove    bool   // the directory is to go too
	keep      string // it is not removed but becomes this
	closeErr  error  // set before open is Done
}

const (
	chunkBytes = 256 * dc.KiB
	// tableBytesMax is the size of a table, on all levels: 10 GiB are some 2,600 files.
	tableBytesMax = 4 * dc.MiB
	largeValue    = 1 // Badger's user meta byte of a row whose value is in chunks
	chunkPrefix   = "!v"
	appliedKey    = "!applied"
)

func badgerOptions(path string, cfg *Config, awake bool) badger.Options {
	opt := badger.DefaultOptions(path).
		WithLogger(badgerLog{cfg.Log}).
		WithMemTableSize(cfg.MemTableBytes).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithBaseTableSize(tableBytesMax). // Badger gets twice a table's greatest size for each that it builds; tables that grow by level made that 100 MiB
		WithNumGoroutines(1).
		WithBlockCacheSize(0).WithCompression(options.None).
		WithIndexCacheSize(0).
		WithValueLogFileSize(1 << 20).
		WithValueThreshold(chunkBytes + 1*dc.KiB). // values never reach it: the value log stays empty
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithCompactL0OnClose(false)
	opt.TableSizeMultiplier = 1
	if !awake {
		// Without compactors Badger would wait for them for ever once this many tables are there.
		opt = opt.WithNumCompactors(0).WithNumLevelZeroTablesStall(1 << 20)
	}
	return opt
}

// newGeneration makes the generation at path, with its files closed.
func newGeneration(path string, cfg *Config, open *sync.WaitGroup) *generation {
	open.Add(1)
	return &generation{path: path, refs: 1, pins: map[dc.Index]int{}, open: open, cache: newCache(cfg.CacheBytes, 0)}
}

// openGeneration opens the Badger directory at path.
func openGeneration(path string, cfg *Config, open *sync.WaitGroup) (*generation, error) {
	g := newGeneration(path, cfg, open)
	rec, err := g.openFiles(cfg)
	if err != nil {
		open.Done()
		return nil, err
	}
	g.begin(rec)
	g.db.SetDiscardTs(g.discarded)
	return g, nil
}

// begin notes with which checkpoint this process has found the generation.
func (g *generation) begin(rec checkpointRecord) {
	g.durable, g.discarded, g.clocked = rec.mark(), uint64(rec.Index), rec.Clock != nil
}

// openFiles opens Badger and decides how far its state can be trusted. Until the caller says what may be discarded, all versions are kept.
func (g *generation) openFiles(cfg *Config) (rec checkpointRecord, err error) {
	if rec, err = readCheckpoint(g.path); err != nil {
		return rec, err
	}
	rebooted := rec.Boot != cfg.BootID
	if rebooted && rec.Index == 0 {
		// Nothing of it was ever made durable, not even that Badger made its files.
		if err := g.beginAnew(rec, cfg.BootID); err != nil {
			return rec, err
		}
		rebooted = false
	}
	if err := removeEmptyLogs(g.path); err != nil {
		return rec, err
	}
	db, awake, err := openBadger(g.path, cfg)
	if err != nil {
		return rec, &Fault{err}
	}
	if rebooted {
		// What was written after the checkpoint may have holes. It stays invisible: the applied marks of this boot begin at
		// the checkpoint, and those of the last boot are told by their boot id.
		if err := errors.Join(syncAll(g.path), writeCheckpoint(g.path, rec.mark(), rec.Clock, cfg.BootID)); err != nil {
			return rec, errors.Join(err, db.Close())
		}
	}
	g.db, g.awake = db, awake
	return rec, nil
}

// beginAnew removes what is there but CHECKPOINT.
func (g *generation) beginAnew(rec checkpointRecord, boot string) error {
	files, err := os.ReadDir(g.path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Name() == checkpointFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(g.path, f.Name())); err != nil {
			return err
		}
	}
	return writeCheckpoint(g.path, rec.mark(), rec.Clock, boot) // syncs the directory, too
}

// openBadger opens the files without compactors, unless they have work: each time that a shard is put away may leave one more table.
func openBadger(path string, cfg *Config) (db *badger.DB, awake bool, err error) {
	if db, err = badger.OpenManaged(badgerOptions(path, cfg, false)); err != nil || db.Levels()[0].NumTables < wakeTables {
		return db, false, err
	}
	if err := db.Close(); err != nil {
		return nil, false, err
	}
	db, err = badger.OpenManaged(badgerOptions(path, cfg, true))
	return db, true, err
}

// load reads what a ledger needs to go on from this generation's state.
func (g *generation) load(m Machine) (l *ledger, err error) {
	defer func() {
		if f, ok := recover().(*Fault); ok {
			err = f
		}
	}()
	rec, err := readCheckpoint(g.path)
	if err != nil {
		return nil, err
	}
	l = newLedger(m)
	l.applied, l.term = g.durable.Index, g.durable.Term
	if err := g.lastApplied(rec.Boot, l); err != nil {
		return nil, err
	}
	r := g.reader(l.applied)
	defer r.close()
	if err := l.answers.load(r); err != nil {
		return nil, dc.Errorf(dc.Corrupt, "", g.path, "%w", err)
	}
	if err := l.fences.load(r); err != nil {
		return nil, dc.Errorf(dc.Corrupt, "", g.path, "%w", err)
	}
	g.cache.through = l.applied
	g.findLarge(l.applied)
	return l, nil
}

// findLarge finds the keys that have chunks, also in versions that a crash left beyond the applied index: entries that are applied again may come in
// other groups, so that a value in chunks that was seen then is never seen now, and only what is known to be there is removed.
func (g *generation) findLarge(applied dc.Index) {
	g.large = map[string]int{}
	txn := g.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(chunkPrefix), AllVersions: true})
	defer it.Close()
	var last []byte
	for it.Rewind(); it.Valid(); it.Next() { // the newest version of a key comes first
		item := it.Item()
		if bytes.Equal(item.Key(), last) {
			continue // older than what the state has
		}
		if item.Version() <= uint64(applied) {
			last = item.KeyCopy(last)
		}
		if item.IsDeletedOrExpired() {
			continue
		}
		key := item.Key()
		owner, number := string(key[len(chunkPrefix):len(key)-4]), int(binary.BigEndian.Uint32(key[len(key)-4:]))
		g.large[owner] = max(g.large[owner], number+1)
	}
}

// lastApplied finds the newest applied mark written in this boot, or else the one of the checkpoint, for its clock.
func (g *generation) lastApplied(boot string, l *ledger) error {
	txn := g.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(appliedKey), AllVersions: true})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return &Fault{err}
		}
		d := decoder{b: value}
		index, term, clock, by := dc.Index(d.uvarint()), dc.Term(d.uvarint()), d.varint(), string(d.bytes())
		if d.bad {
			return dc.Errorf(dc.Corrupt, "", g.path, "the applied mark at version %d does not decode", it.Item().Version())
		}
		if by == boot && index >= l.applied || index == l.applied {
			l.applied, l.term, l.clock = index, term, clock
			return nil
		}
		if index < l.applied {
			break
		}
	}
	if l.applied > 0 {
		return dc.Errorf(dc.Corrupt, "", g.path, "the state of checkpoint %d is not there: the disk lost synced writes", l.applied)
	}
	return nil
}

func encodeApplied(m Mark, clock int64, boot string) []byte {
	b := binary.AppendUvarint(nil, uint64(m.Index))
	b = binary.AppendUvarint(b, uint64(m.Term))
	b = binary.AppendVarint(b, clock)
	return appendBytes(b, boot)
}

// unrefLocked drops a reference; the last one closes the files, in the background because that takes a flush.
func (g *generation) unrefLocked() {
	if g.refs--; g.refs > 0 {
		return
	}
	go func() {
		if g.db != nil {
			g.closeErr = g.db.Close()
		}
		switch {
		case g.keep != "":
			g.closeErr = errors.Join(g.closeErr, os.Rename(g.path, g.keep))
		case g.remove:
			g.closeErr = errors.Join(g.closeErr, os.RemoveAll(g.path))
		}
		g.open.Done()
	}()
}

// write commits the rows of over at one version, in as many Badger transactions as it takes; the applied mark comes with
// the last one. Until the shard moves its applied index nothing of it is seen.
func (g *generation) write(over *overlay, m Mark, clock int64, boot string) error {
	w := writer{db: g.db, version: uint64(m.Index)}
	over.rows.each(Span{}, func(r row) bool {
		g.writeRow(&w, r)
		return w.err == nil
	})
	w.set([]byte(appliedKey), encodeApplied(m, clock, boot), 0)
	w.commit()
	return w.err
}

func (g *generation) writeRow(w *writer, r row) {
	had := g.large[string(r.key)]
	chunks := 0
	switch {
	case r.dropped:
		w.remove(r.key)
	case len(r.value) <= chunkBytes:
		w.set(r.key, r.value, 0)
	default:
		for rest := r.value; len(rest) > 0; chunks++ {
			n := min(len(rest), chunkBytes)
			w.set(chunkKey(r.key, chunks), rest[:n], 0)
			rest = rest[n:]
		}
		w.set(r.key, binary.BigEndian.AppendUint32(nil, uint32(chunks)), largeValue)
	}
	for i := chunks; i < had; i++ {
		w.remove(chunkKey(r.key, i))
	}
	if chunks > 0 {
		g.large[string(r.key)] = chunks
	} else if had > 0 {
		delete(g.large, string(r.key))
	}
}

func chunkKey(key []byte, number int) []byte {
	b := make([]byte, 0, len(chunkPrefix)+len(key)+4)
	b = append(append(b, chunkPrefix...), key...)
	return binary.BigEndian.AppendUint32(b, uint32(number))
}

// A writer puts rows into Badger transactions of one version, a new one whenever the last is full.
type writer struct {
	db      *badger.DB
	version uint64
	txn     *badger.Txn
	err     error
}

func (w *writer) set(key, value []byte, meta byte) {
	w.do(func() error { return w.txn.SetEntry(&badger.Entry{Key: key, Value: value, UserMeta: meta}) })
}

func (w *writer) remove(key []byte) { w.do(func() error { return w.txn.Delete(key) }) }

func (w *writer) do(op func() error) {
	if w.err != nil {
		return
	}
	if w.txn == nil {
		w.txn = w.db.NewTransactionAt(w.version, true)
	}
	w.err = op()
	if errors.Is(w.err, badger.ErrTxnTooBig) {
		if w.commit(); w.err == nil {
			w.txn = w.db.NewTransactionAt(w.version, true)
			w.err = op()
		}
	}
}

// commit ends the transaction at hand.
func (w *writer) commit() {
	if w.txn == nil {
		return
	}
	if w.err == nil || errors.Is(w.err, badger.ErrTxnTooBig) {
		w.err = w.txn.CommitAt(w.version, nil)
	}
	w.txn.Discard()
	w.txn = nil
}

// removeEmptyLogs takes away logs without a byte, which Badger refuses to open: a power cut leaves them, and so does a kill between
// the creation of a file and the setting of its length.
func removeEmptyLogs(path string) error {
	logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
	if err != nil {
		return err
	}
	values, err := filepath.Glob(filepath.Join(path, "*.vlog"))
	if err != nil {
		return err
	}
	for _, name := range append(logs, values...) {
		if fi, err := os.Stat(name); err == nil && fi.Size() == 0 {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// badgerLog passes Badger's warnings on.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, args ...any) {
	l.log.Error("badger", "err", fmt.Sprintf(f, args...))
}

func (l badgerLog) Warningf(f string, args ...any) {
	l.log.Warn("badger", "text", fmt.Sprintf(f, args...))
}
func (l badgerLog) Infof(string, ...any)  {}
func (l badgerLog) Debugf(string, ...any) {}
