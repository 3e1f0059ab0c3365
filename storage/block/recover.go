package block

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"missingos/srv/dc/file"
)

const (
	identityName   = "IDENTITY"
	identityBytes  = 24
	identityMagic  = 0x4449424344 // "DCBID"
	checkpointName = "INDEX"
	checkpointMark = 0x58494344 // "DCIX"
)

func putMagic(b []byte, m uint32) { binary.LittleEndian.PutUint32(b, m) }

// load brings the store up: identity and boot counter, checkpoint, scan.
func (s *Store) load() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := s.loadIdentity(); err != nil {
		return err
	}
	taken, err := s.loadCheckpoint()
	if err != nil {
		s.cfg.Log.Warn("block checkpoint is unusable: scanning everything", "dir", s.cfg.Dir, "err", err)
		clear(s.index)
		taken = nil
	}
	names, err := filepath.Glob(filepath.Join(s.cfg.Dir, "seg-*"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		var n uint32
		if _, err := fmt.Sscanf(filepath.Base(name), "seg-%08d", &n); err != nil {
			continue
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		s.active = &segment{number: n, f: f, end: taken[n], writing: map[int64]bool{}}
		s.segments[n] = s.active
		if err := s.scan(s.active); err != nil {
			return err
		}
	}
	return s.takeStock()
}

// loadIdentity reads the salt and counts this opening, durably, before any id is given out.
func (s *Store) loadIdentity() error {
	path := filepath.Join(s.cfg.Dir, identityName)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if old, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "seg-*")); len(old) > 0 {
			return fmt.Errorf("%s is missing beside %d segments: put the file back, or move the segments away", path, len(old))
		}
		var salt [8]byte
		_, _ = rand.Read(salt[:])
		s.salt = binary.LittleEndian.Uint64(salt[:])
	case err != nil:
		return err
	case len(b) != identityBytes || binary.LittleEndian.Uint64(b) != identityMagic || crc32.Checksum(b[:20], castagnoli) != binary.LittleEndian.Uint32(b[20:]):
		return fmt.Errorf("%s is damaged", path)
	default:
		s.salt, s.boot = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
	}
	s.boot++
	out := binary.LittleEndian.AppendUint64(nil, identityMagic)
	out = binary.LittleEndian.AppendUint64(out, s.salt)
	out = binary.LittleEndian.AppendUint32(out, s.boot)
	out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
	return replaceFile(path, out)
}

// scan takes in the records from seg.end on, verifying their data, and leaves end after the last of them.
func (s *Store) scan(seg *segment) error {
	st, err := seg.f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, align)
	last := seg.end
	for at := seg.end; at < st.Size(); {
		n, err := seg.f.ReadAt(head, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		h, sums, ok := decodeHeader(head[:n], s.salt, seg.number, at)
		if !ok { // torn, or a write that never happened: the next record starts at some later page
			at += align
			continue
		}
		next := at + recordBytes(h.bytes)
		if h.magic == magicLive {
			data := make([]byte, h.bytes)
			n, err := seg.f.ReadAt(data, at+dataOffset(h.bytes))
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if n < len(data) || !verify(sums, 0, data) {
				at += align
				continue
			}
			s.index[h.id] = place{seg.number, uint32(at / align), h.bytes}
		}
		at, last = next, next
	}
	if last < st.Size() {
		if err := seg.f.Truncate(last); err != nil {
			return err
		}
	}
	seg.end = last
	return nil
}

// takeStock counts what the index holds and removes sealed segments that hold nothing.
func (s *Store) takeStock() error {
	for id, p := range s.index {
		seg := s.segments[p.segment]
		if seg == nil {
			delete(s.index, id) // its segment was emptied and removed after the checkpoint
			continue
		}
		seg.live += recordBytes(p.bytes)
		s.bytes += recordBytes(p.bytes)
	}
	for n, seg := range s.segments {
		if seg.live > 0 || seg == s.active {
			continue
		}
		delete(s.segments, n)
		if err := errors.Join(os.Remove(seg.f.Name()), seg.f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// checkpoint writes the index as of now, so that the next Open scans only what comes after. Everything in it is synced first.
func (s *Store) checkpoint() error {
	s.mu.Lock()
	b := binary.LittleEndian.AppendUint32(nil, checkpointMark)
	b = binary.LittleEndian.AppendUint64(b, s.salt)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.segments)))
	for n, seg := range s.segments {
		end := seg.end
		for at := range seg.writing {
			end = min(end, at)
		}
		b = binary.LittleEndian.AppendUint32(b, n)
		b = binary.LittleEndian.AppendUint64(b, uint64(end))
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s.index)))
	for id, p := range s.index {
		b = id.Append(b)
		b = binary.LittleEndian.AppendUint32(b, p.segment)
		b = binary.LittleEndian.AppendUint32(b, p.page)
		b = binary.LittleEndian.AppendUint32(b, p.bytes)
	}
	s.since = 0
	s.mu.Unlock()
	if err := s.Sync(); err != nil {
		return err
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return replaceFile(filepath.Join(s.cfg.Dir, checkpointName), b)
}

// loadCheckpoint fills the index and tells how far each segment has been taken in. Without a checkpoint it does nothing.
func (s *Store) loadCheckpoint() (map[uint32]int64, error) {
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, checkpointName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < 28 || crc32.Checksum(b[:len(b)-4], castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, errors.New("its checksum does not match")
	}
	if binary.LittleEndian.Uint32(b) != checkpointMark || binary.LittleEndian.Uint64(b[4:]) != s.salt {
		return nil, errors.New("it belongs to another store")
	}
	taken := map[uint32]int64{}
	n := binary.LittleEndian.Uint32(b[12:])
	b = b[16:]
	for range n {
		taken[binary.LittleEndian.Uint32(b)] = int64(binary.LittleEndian.Uint64(b[4:]))
		b = b[12:]
	}
	blocks := binary.LittleEndian.Uint64(b)
	b = b[8:]
	for range blocks {
		id, _ := file.ParseBlockID(b[:file.BlockIDBytes])
		s.index[id] = place{binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:]), binary.LittleEndian.Uint32(b[24:])}
		b = b[28:]
	}
	return taken, nil
}

// replaceFile writes a file so that after a crash there is the old or the new content, whole.
func replaceFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
