package logstore

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"missingos/srv/dc"
)

// Names of files: 00000000000000000012.log is segment 12; one that waits to be used again ends in .spare.
const (
	segmentSuffix = ".log"
	spareSuffix   = ".spare"
)

func segmentName(seq uint64) string { return fmt.Sprintf("%020d%s", seq, segmentSuffix) }
func spareName(seq uint64) string   { return fmt.Sprintf("%020d%s", seq, spareSuffix) }

// recover reads the segments and begins a new one.
func (s *Shared) recover() error {
	p, err := s.replay(0)
	if err != nil {
		return err
	}
	if oldest := p.oldest; len(s.segments) > 0 && s.segments[0].seq < oldest {
		// Some that were let go are still there. What they say has been taken back by others that are not.
		for _, seg := range s.segments {
			if err := seg.file.Close(); err != nil {
				return err
			}
		}
		if p, err = s.replay(oldest); err != nil {
			return err
		}
	}
	if err := s.contiguous(p.oldest); err != nil {
		return err
	}
	for id, r := range p.groups {
		if err := r.finish(s, s.groupLocked(id)); err != nil {
			return dc.Errorf(dc.Corrupt, "open", "write-ahead log", "group %s: %w", id, err)
		}
	}
	next := uint64(1)
	if n := len(s.segments); n > 0 {
		// The last segment is not written on: after a torn write records may lie there that look valid and were never acknowledged. The seal says
		// where it ends.
		next = s.segments[n-1].seq + 1
		if err := s.sealAt(s.segments[n-1], p.end, p.sealed); err != nil {
			return err
		}
	}
	return s.begin(next)
}

// replay reads all segments from oldest on; earlier ones are kept for reuse.
func (s *Shared) replay(oldest uint64) (*replay, error) {
	s.segments, s.spares = nil, nil
	seqs, err := s.listFiles()
	if err != nil {
		return nil, err
	}
	p := &replay{groups: map[dc.GroupID]*replayed{}}
	for i, seq := range seqs {
		end := int64(0)
		if seq >= oldest {
			if end, err = s.readSegment(p, seq, i == len(seqs)-1); err != nil {
				return nil, dc.Errorf(dc.Corrupt, "open", "write-ahead log", "%s: %w", segmentName(seq), err)
			}
		}
		if seq >= oldest && end == 0 {
			// Begun, and no batch is whole. The number is used again, so the file must not be: parts of that batch would count as this segment's.
			if err := s.cfg.FS.Remove(segmentName(seq)); err != nil {
				return nil, err
			}
			continue
		}
		if end == 0 { // let go
			if err := s.cfg.FS.Rename(segmentName(seq), spareName(seq)); err != nil {
				return nil, err
			}
			s.spares = append(s.spares, spareName(seq))
			continue
		}
		p.end = end
	}
	return p, nil
}

// listFiles gives the segments in order, and notes spare files.
func (s *Shared) listFiles() ([]uint64, error) {
	names, err := s.cfg.FS.List()
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, name := range names {
		if base, ok := strings.CutSuffix(name, spareSuffix); ok {
			if _, err := strconv.ParseUint(base, 10, 64); err == nil {
				s.spares = append(s.spares, name)
			}
		}
		if base, ok := strings.CutSuffix(name, segmentSuffix); ok {
			if seq, err := strconv.ParseUint(base, 10, 64); err == nil {
				seqs = append(seqs, seq)
			}
		}
	}
	for len(s.spares) > maxSpares {
		if err := s.cfg.FS.Remove(s.spares[0]); err != nil {
			return nil, err
		}
		s.spares = s.spares[1:]
	}
	slices.Sort(seqs)
	return seqs, nil
}

// readSegment replays one segment and gives where its records end; zero if it has none and is the last.
func (s *Shared) readSegment(p *replay, seq uint64, last bool) (end int64, err error) {
	name := segmentName(seq)
	f, err := s.cfg.FS.Open(name)
	if err != nil {
		return 0, err
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, f.Close())
		}
	}()
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && (!errors.Is(err, io.EOF) || int64(n) != size) {
		return 0, err
	}
	ok, err := parseHeader(b, seq)
	if err != nil {
		return 0, err
	}
	crc := salt(seq)
	if !ok {
		if last && laterBatch(b, crc) < 0 {
			return 0, nil
		}
		return 0, errors.New("its header is damaged; restore the node from its peers: remove it from the cluster and let it join anew")
	}
	seg := &part{seq: seq, name: name, file: f}
	keep = true
	s.segments = append(s.segments, seg)
	p.sealed = false
	off := headerBytes
	for !p.sealed {
		r, err := parseRecord(b[off:], crc)
		if err != nil {
			break
		}
		if err := p.apply(r, place{seg, uint32(off), uint32(recordBytes + len(r.payload))}); err != nil {
			return 0, fmt.Errorf("at %d: %w", off, err)
		}
		off = min(off+r.size(), len(b))
	}
	if p.sealed {
		return int64(off), nil
	}
	if !last {
		return 0, fmt.Errorf("the record at %d is damaged, and a later segment exists; restore the node from its peers: remove it from the cluster and let it join anew", off)
	}
	if at := laterBatch(b[off:], crc); at >= 0 {
		return 0, fmt.Errorf("the record at %d is damaged, though it was safe before what lies at %d was written; restore the node from its peers: remove it from the cluster and let it join anew", off, off+at)
	}
	return int64(off), nil
}

// laterBatch looks for the beginning of a batch: all before it was on the disk when it was written. -1 if there is none.
func laterBatch(b []byte, crc uint32) int {
	for off := 0; off+recordBytes <= len(b); off += align {
		if kind(b[off+8]) != kindBatch {
			continue
		}
		if r, err := parseRecord(b[off:], crc); err == nil && r.kind == kindBatch && off > 0 {
			return off
		}
	}
	return -1
}

// contiguous tells whether all segments that are needed are there.
func (s *Shared) contiguous(oldest uint64) error {
	for i, seg := range s.segments {
		want := max(oldest, 1)
		if i > 0 {
			want = s.segments[i-1].seq + 1
		}
		if seg.seq != want {
			return dc.Errorf(dc.Corrupt, "open", "write-ahead log", "%s is missing; restore the node from its peers: remove it from the cluster and let it join anew", segmentName(want))
		}
	}
	return nil
}

// sealAt ends a segment, unless it was sealed, and makes it durable. What was read from it, its seal too, may be in the kernel's memory only, if the
// process was killed before its fsync; the next segment must not reach the disk before it.
func (s *Shared) sealAt(seg *part, end int64, sealed bool) error {
	if !sealed {
		b := record{kind: kindSeal}.append(nil)
		sealRecord(b, salt(seg.seq))
		if _, err := seg.file.WriteAt(b, end); err != nil {
			return fmt.Errorf("%s: seal at %d: %w", seg.name, end, err)
		}
	}
	if err := seg.file.Sync(); err != nil {
		return fmt.Errorf("%s: sync: %w", seg.name, err)
	}
	return nil
}

// replay gathers what the records say.
type replay struct {
	groups map[dc.GroupID]*replayed
	oldest uint64
	sealed bool  // the last segment ends with a seal
	end    int64 // where its records end
}

// replayed is one group's.
type replayed struct {
	entries     map[uint64]place
	first, last uint64 // first: entries before it are gone
	state       place
	rec         voteRecord
	commit      uint64
}

func (p *replay) apply(r record, at place) error {
	switch r.kind {
	case kindBatch:
		return nil
	case kindSeal:
		p.sealed = true
		return nil
	case kindOldest:
		p.oldest = max(p.oldest, r.index)
		return nil
	case kindDrop:
		delete(p.groups, r.group)
		return nil
	}
	g := p.groups[r.group]
	if g == nil {
		g = &replayed{entries: map[uint64]place{}}
		p.groups[r.group] = g
	}
	return g.apply(r, at)
}

func (g *replayed) apply(r record, at place) error {
	switch r.kind {
	case kindEntry:
		g.entries[r.index] = at
		g.last = max(g.last, r.index)
	case kindFirst:
		for i := range g.entries {
			if i < r.index {
				delete(g.entries, i)
			}
		}
		g.first = r.index
	case kindLast:
		for i := range g.entries {
			if i > r.index {
				delete(g.entries, i)
			}
		}
		g.last = r.index
	case kindClear:
		clear(g.entries)
		g.first, g.last = 0, 0
	case kindState:
		rec, err := decodeVote(r.payload)
		if err != nil {
			return err
		}
		g.rec, g.state = rec, at
	case kindCommit:
		g.commit = max(g.commit, r.index)
	default:
		return fmt.Errorf("a record of kind %d is not known to this program", r.kind)
	}
	return nil
}

// finish makes a group of what was gathered.
func (r *replayed) finish(s *Shared, g *group) error {
	g.rec, g.voteTerm, g.commit = r.rec, r.rec.voteTerm, r.commit
	if r.state.seg != nil {
		g.state = r.state
		s.useLocked(r.state)
	}
	first := r.last + 1
	for i := range r.entries {
		if i >= r.first {
			first = min(first, i)
		}
	}
	if first > r.last {
		return nil
	}
	g.first = first
	for i := first; i <= r.last; i++ {
		at, ok := r.entries[i]
		if !ok {
			return fmt.Errorf("entry %d of %d to %d is missing", i, first, r.last)
		}
		g.entries = append(g.entries, at)
		s.useLocked(at)
	}
	return nil
}
