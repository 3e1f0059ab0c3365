package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
)

// Raft's keys of its stable store.
const (
	keyTerm      = "CurrentTerm"
	keyVoteTerm  = "LastVoteTerm"
	keyCandidate = "LastVoteCand"
)

// errNotFound is the text by which hashicorp/raft knows a missing key.
var errNotFound = errors.New("not found")

// Vote is the stable store of a group: current term, and the last vote as one record. It is replaced as a whole: written aside, fsynced, renamed.
type Vote struct {
	path  string
	fatal func(error)

	mu       sync.Mutex
	rec      voteRecord
	voteTerm uint64 // set by Raft first, written together with the candidate
}

type voteRecord struct {
	term, voteTerm uint64
	candidate      []byte
}

// OpenVote reads the file, which need not exist yet. A record that does not match its checksum is refused: guessing a vote could elect two leaders.
func OpenVote(path string) (*Vote, error) {
	v := &Vote{path: path, fatal: func(error) {}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return nil, err
	}
	if v.rec, err = decodeVote(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v.voteTerm = v.rec.voteTerm
	return v, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const voteVersion = 1

func (r voteRecord) encode() []byte {
	b := []byte{voteVersion}
	b = binary.BigEndian.AppendUint64(b, r.term)
	b = binary.BigEndian.AppendUint64(b, r.voteTerm)
	b = append(b, r.candidate...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeVote(b []byte) (voteRecord, error) {
	const fixed = 1 + 8 + 8 + 4
	if len(b) < fixed || b[0] != voteVersion {
		return voteRecord{}, fmt.Errorf("a vote of %d bytes has an unknown version", len(b))
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return voteRecord{}, errors.New("the vote's checksum does not match")
	}
	return voteRecord{
		term: binary.BigEndian.Uint64(b[1:]), voteTerm: binary.BigEndian.Uint64(b[9:]), candidate: bytes.Clone(body[17:]),
	}, nil
}

// write makes rec the vote on disk and in memory.
func (v *Vote) writeLocked(rec voteRecord) error {
	if err := WriteFile(v.path, rec.encode()); err != nil {
		v.fatal(fmt.Errorf("raft vote %s: %w", filepath.Base(filepath.Dir(v.path)), err))
		return err
	}
	v.rec = rec
	return nil
}

// Set stores the candidate of a vote, and with it the vote's term.
func (v *Vote) Set(key, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if string(key) != keyCandidate {
		return fmt.Errorf("unknown key %q", key)
	}
	return v.writeLocked(voteRecord{term: v.rec.term, voteTerm: v.voteTerm, candidate: bytes.Clone(value)})
}

// Get reads the candidate of the last vote.
func (v *Vote) Get(key []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if string(key) != keyCandidate || v.rec.candidate == nil {
		return nil, errNotFound
	}
	return bytes.Clone(v.rec.candidate), nil
}

// SetUint64 stores the current term at once; a vote's term waits for its candidate.
func (v *Vote) SetUint64(key []byte, value uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch string(key) {
	case keyTerm:
		rec := v.rec
		rec.term = value
		return v.writeLocked(rec)
	case keyVoteTerm:
		v.voteTerm = value
		return nil
	}
	return fmt.Errorf("unknown key %q", key)
}

// GetUint64 reads a term.
func (v *Vote) GetUint64(key []byte) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch string(key) {
	case keyTerm:
		return v.rec.term, nil
	case keyVoteTerm:
		return v.rec.voteTerm, nil
	}
	return 0, errNotFound
}
