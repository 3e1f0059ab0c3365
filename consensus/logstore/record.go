package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/s2"

	"missingos/srv/dc"
)

// A segment is a file of records after a header, in the order in which they were written:
//
//	header  magic[8] version u32 sequence u64 crc u32                                    (32 bytes with padding)
//	record  crc u32 length u32 kind u8 flags u8 zero u16 zero u32 group u64 index u64 payload    (padded to 8 bytes)
//
// Integers are big endian. A CRC (Castagnoli) covers everything after itself and, by its start value, the segment's sequence number: what a recycled
// file still holds from its last life has another number and is no record. length is the payload's.
const (
	segmentMagic   = "dc-log\r\n"
	segmentVersion = 1
	headerBytes    = 32
	recordBytes    = 32
	align          = 8

	// compressAbove is the payload size from which compression is tried.
	compressAbove = 1 * dc.KiB
)

type kind uint8

const (
	kindEntry  kind = 1 + iota // index; payload: an entry. A later record of the same index is the same entry, moved.
	kindState                  // payload: term and vote, and whatever else of Raft's stable store
	kindFirst                  // entries before index are gone
	kindLast                   // entries after index are gone
	kindClear                  // all entries are gone; the next may have any index
	kindDrop                   // the group is gone, with its state
	kindCommit                 // index is known to be committed
	kindBatch                  // begins what was written at once: everything before it was durable when it was written
	kindOldest                 // index is the sequence number of the oldest segment that is needed
	kindSeal                   // the segment ends here, and another follows
)

const flagCompressed = 1

type record struct {
	kind    kind
	flags   uint8
	group   dc.GroupID
	index   uint64
	payload []byte // as stored
}

func salt(seq uint64) uint32 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], seq)
	return crc32.Checksum(b[:], castagnoli)
}

func padded(n int) int { return (n + align - 1) &^ (align - 1) }

// size is what a record takes in a segment.
func (r record) size() int { return padded(recordBytes + len(r.payload)) }

// append lays the record out but for its CRC, which depends on the segment; see seal.
func (r record) append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, recordBytes)...)
	h := b[start:]
	binary.BigEndian.PutUint32(h[4:], uint32(len(r.payload)))
	h[8], h[9] = byte(r.kind), r.flags
	binary.BigEndian.PutUint64(h[16:], uint64(r.group))
	binary.BigEndian.PutUint64(h[24:], r.index)
	b = append(b, r.payload...)
	return append(b, make([]byte, r.size()-recordBytes-len(r.payload))...)
}

// sealRecord sets the CRC of the record that begins b, and gives its size.
func sealRecord(b []byte, salt uint32) int {
	n := recordBytes + int(binary.BigEndian.Uint32(b[4:]))
	binary.BigEndian.PutUint32(b, crc32.Update(salt, castagnoli, b[4:n]))
	return padded(n)
}

var errNoRecord = errors.New("there is no valid record")

// parseRecord reads the record that begins b; the payload aliases b.
func parseRecord(b []byte, salt uint32) (record, error) {
	if len(b) < recordBytes {
		return record{}, errNoRecord
	}
	n := uint64(recordBytes) + uint64(binary.BigEndian.Uint32(b[4:]))
	k := kind(b[8])
	if n > uint64(len(b)) || k < kindEntry || k > kindSeal {
		return record{}, errNoRecord
	}
	if crc32.Update(salt, castagnoli, b[4:n]) != binary.BigEndian.Uint32(b) {
		return record{}, errNoRecord
	}
	return record{
		kind: k, flags: b[9], group: dc.GroupID(binary.BigEndian.Uint64(b[16:])), index: binary.BigEndian.Uint64(b[24:]), payload: b[recordBytes:n:n],
	}, nil
}

func encodeHeader(seq uint64) []byte {
	b := make([]byte, headerBytes)
	copy(b, segmentMagic)
	binary.BigEndian.PutUint32(b[8:], segmentVersion)
	binary.BigEndian.PutUint64(b[12:], seq)
	binary.BigEndian.PutUint32(b[20:], crc32.Checksum(b[:20], castagnoli))
	return b
}

// parseHeader tells whether b is the header of segment seq. A newer format is an error of its own.
func parseHeader(b []byte, seq uint64) (bool, error) {
	if len(b) < headerBytes || string(b[:8]) != segmentMagic || crc32.Checksum(b[:20], castagnoli) != binary.BigEndian.Uint32(b[20:]) {
		return false, nil
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != segmentVersion {
		return false, fmt.Errorf("its format is version %d, this program knows %d", v, segmentVersion)
	}
	return binary.BigEndian.Uint64(b[12:]) == seq, nil
}

// encodeEntry makes a record of one of Raft's entries.
func encodeEntry(g dc.GroupID, l *raft.Log) record {
	b := make([]byte, 0, 8+1+binary.MaxVarintLen32+len(l.Extensions)+len(l.Data))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = append(b, byte(l.Type))
	b = binary.AppendUvarint(b, uint64(len(l.Extensions)))
	b = append(b, l.Extensions...)
	b = append(b, l.Data...)
	r := record{kind: kindEntry, group: g, index: l.Index, payload: b}
	if len(b) > compressAbove {
		if c := s2.Encode(nil, b); len(c) < len(b)*7/8 {
			r.payload, r.flags = c, flagCompressed
		}
	}
	return r
}

// decodeEntry is encodeEntry's inverse. l shares nothing with r unless r is not compressed.
func decodeEntry(r record, l *raft.Log) error {
	b := r.payload
	if r.flags&flagCompressed != 0 {
		var err error
		if b, err = s2.Decode(nil, b); err != nil {
			return err
		}
	}
	if len(b) < 9 {
		return errors.New("the entry is cut off")
	}
	n, k := binary.Uvarint(b[9:])
	if k <= 0 || n > uint64(len(b)-9-k) {
		return errors.New("the entry is cut off")
	}
	*l = raft.Log{Index: r.index, Term: binary.BigEndian.Uint64(b), Type: raft.LogType(b[8])}
	rest := b[9+k:]
	if n > 0 {
		l.Extensions = rest[:n:n]
	}
	if l.Data = rest[n:]; len(l.Data) == 0 {
		l.Data = nil
	}
	return nil
}
