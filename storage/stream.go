package storage

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"missingos/srv/dc"
)

// A snapshotReader reads a stream and trusts nothing in it.
type snapshotReader struct {
	r       *bufio.Reader
	packer  packer
	format  int
	mark    Mark
	clock   int64
	after   []byte // the stream goes on after this row; nil if it begins with the first
	size    uint64 // of all rows, about
	head    [frameHeaderLen]byte
	packed  []byte
	payload []byte
	rows    uint64
	lastKey []byte

	consumed int64 // bytes of the stream, up to the end of the last frame
}

func openSnapshot(r io.Reader) (*snapshotReader, error) {
	sr := &snapshotReader{r: bufio.NewReaderSize(r, 64*dc.KiB)}
	magic := make([]byte, len(snapshotMagic(1)))
	_, err := io.ReadFull(sr.r, magic)
	if err != nil {
		return nil, sr.short(err)
	}
	for format := 1; format <= SnapshotFormat; format++ {
		if string(magic) == snapshotMagic(format) {
			sr.format, sr.packer = format, newPacker(format)
		}
	}
	if sr.packer == nil {
		return nil, dc.Errorf(dc.Corrupt, "", "", "not a snapshot stream, or of an unknown version: it begins with %q", magic)
	}
	sr.consumed = int64(len(magic))
	kind, d, err := sr.frame()
	if err != nil {
		return nil, err
	}
	sr.mark = Mark{dc.Index(d.uvarint()), dc.Term(d.uvarint())}
	sr.clock = d.varint()
	if sr.format > 1 {
		sr.after, sr.size = d.bytes(), d.uvarint()
		sr.lastKey = sr.after
	}
	if kind != 'h' || d.bad || len(d.b) > 0 {
		return nil, dc.Errorf(dc.Corrupt, "", "", "the head of the snapshot stream does not decode")
	}
	return sr, nil
}

// frame reads one frame. What it returns is valid until the next call.
func (sr *snapshotReader) frame() (kind byte, d decoder, err error) {
	head := &sr.head
	if _, err := io.ReadFull(sr.r, head[:]); err != nil {
		return 0, d, sr.short(err)
	}
	size, packed := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if size == 0 || size > maxFrameBytes || packed > maxPackedBytes {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "the snapshot stream has a frame of %d bytes after %d rows", size, sr.rows)
	}
	sr.packed = append(sr.packed[:0], make([]byte, packed)...)
	if _, err := io.ReadFull(sr.r, sr.packed); err != nil {
		return 0, d, sr.short(err)
	}
	if crc32.Checksum(sr.packed, castagnoli) != binary.BigEndian.Uint32(head[8:]) {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "a frame of the snapshot stream does not match its checksum after %d rows", sr.rows)
	}
	// A new buffer for each frame: rows are handed on as parts of it.
	if sr.payload, err = sr.packer.unpack(sr.packed, int(size)); err != nil {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "a frame of the snapshot stream does not unpack after %d rows: %w", sr.rows, err)
	}
	sr.consumed += frameHeaderLen + int64(packed)
	return sr.payload[0], decoder{b: sr.payload[1:]}, nil
}

// short says that the stream ended before its last frame: its sender has died, or the connection.
func (sr *snapshotReader) short(err error) error {
	return dc.Errorf(dc.Unavailable, "", "", "the snapshot stream is cut short after %d rows: %w", sr.rows, err)
}

// raw is the last frame as it came, until the next is read.
func (sr *snapshotReader) raw() []byte {
	return append(sr.head[:len(sr.head):len(sr.head)], sr.packed...)
}

// next returns the rows of the next frame; done after the last, when their number is right.
func (sr *snapshotReader) next() (rows []physicalRow, done bool, err error) {
	kind, d, err := sr.frame()
	if err != nil {
		return nil, false, err
	}
	if kind == 'e' {
		if n := d.uvarint(); d.bad || n != sr.rows {
			return nil, false, dc.Errorf(dc.Corrupt, "", "", "the snapshot stream has %d rows and says it should have %d", sr.rows, n)
		}
		return nil, true, nil
	}
	if kind != 'r' {
		return nil, false, dc.Errorf(dc.Corrupt, "", "", "the snapshot stream has a frame of an unknown kind %q", kind)
	}
	for len(d.b) > 0 {
		row := physicalRow{key: d.bytes()}
		if meta := d.take(1); meta != nil {
			row.meta = meta[0]
		}
		row.value = d.bytes()
		if d.bad || len(row.key) == 0 || bytes.Compare(row.key, sr.lastKey) <= 0 {
			return nil, false, dc.Errorf(dc.Corrupt, "", "", "a row of the snapshot stream does not decode after %d rows", sr.rows)
		}
		sr.lastKey = row.key
		sr.rows++
		rows = append(rows, row)
	}
	return rows, false, nil
}

type physicalRow struct {
	key, value []byte
	meta       byte
}

func (r physicalRow) String() string { return fmt.Sprintf("%q %d %q", r.key, r.meta, r.value) }
