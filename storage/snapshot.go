package storage

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/s2"

	"missingos/srv/dc"
)

// A snapshot stream is the magic, then frames: length of the payload before compression, length after, CRC-32C of the compressed
// bytes (each four bytes, big endian), the payload compressed with s2. A payload begins with a byte that says what it is:
//
//	h  index, term, clock: the first frame
//	r  rows in key order: key, Badger's user meta byte, value (large values as their chunks)
//	e  the number of rows: the last frame
//
// Without the last frame a stream is cut short and refused. The shard's applied mark is not a row of the stream: it is local.
const (
	snapshotMagic  = "dcsnap1\n"
	frameBytes     = 256 * dc.KiB // about; a frame ends with the row that reaches it
	maxFrameBytes  = 2 * dc.MiB
	frameHeaderLen = 12
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteSnapshot writes the state as it is to w and returns where in the log that is. Entries are applied meanwhile.
func (s *Shard) WriteSnapshot(ctx context.Context, w io.Writer) (Mark, error) {
	p, err := s.Pin()
	if err != nil {
		return Mark{}, err
	}
	defer p.Release()
	return p.Mark, p.WriteSnapshot(ctx, w)
}

// WriteSnapshot writes the pinned state to w.
func (p *Pinned) WriteSnapshot(ctx context.Context, w io.Writer) error {
	f := frames{w: bufio.NewWriterSize(w, 64*dc.KiB)}
	if _, err := f.w.WriteString(snapshotMagic); err != nil {
		return dc.Wrap(err, "storage.snapshot", "")
	}
	head := binary.AppendUvarint([]byte{'h'}, uint64(p.Index))
	head = binary.AppendUvarint(head, uint64(p.Term))
	f.write(binary.AppendVarint(head, p.Clock))
	rows := uint64(0)
	buf := []byte{'r'}
	err := p.physical(func(key []byte, meta byte, value []byte) error {
		rows++
		buf = append(appendBytes(buf, key), meta)
		buf = appendBytes(buf, value)
		if len(buf) < frameBytes {
			return nil
		}
		f.write(buf)
		buf = buf[:1]
		return errors.Join(f.err, ctx.Err())
	})
	if err == nil && len(buf) > 1 {
		f.write(buf)
	}
	f.write(binary.AppendUvarint([]byte{'e'}, rows))
	if err == nil {
		err = f.err
	}
	if err == nil {
		err = f.w.Flush()
	}
	return dc.Wrap(err, "storage.snapshot", "")
}

// physical yields the rows as they are stored, but for the applied mark, in key order.
func (p *Pinned) physical(fn func(key []byte, meta byte, value []byte) error) error {
	r := p.gen.reader(p.Index)
	defer r.close()
	var err error
	r.items(Span{}, func(item *badger.Item) bool {
		if string(item.Key()) == appliedKey {
			return true
		}
		var inner error
		err = item.Value(func(value []byte) error { inner = fn(item.Key(), item.UserMeta(), value); return nil })
		if err == nil {
			err = inner
		}
		return err == nil
	})
	return err
}

// Hash is a fingerprint of the state: replicas that have applied the same entries have the same, however they came by it.
func (s *Shard) Hash() ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	p, err := s.Pin()
	if err != nil {
		return sum, err
	}
	defer p.Release()
	h := sha256.New()
	var buf []byte
	err = p.physical(func(key []byte, meta byte, value []byte) error {
		buf = append(appendBytes(buf[:0], key), meta)
		buf = binary.AppendUvarint(buf, uint64(len(value)))
		h.Write(buf)
		h.Write(value)
		return nil
	})
	h.Sum(sum[:0])
	return sum, dc.Wrap(err, "storage.hash", s.dir)
}

// frames writes frames; the first error stays.
type frames struct {
	w   *bufio.Writer
	buf []byte
	err error
}

func (f *frames) write(payload []byte) {
	if f.err != nil {
		return
	}
	if need := s2.MaxEncodedLen(len(payload)); cap(f.buf) < need {
		f.buf = make([]byte, need)
	}
	packed := s2.Encode(f.buf[:cap(f.buf)], payload)
	head := binary.BigEndian.AppendUint32(make([]byte, 0, frameHeaderLen), uint32(len(payload)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(packed)))
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(packed, castagnoli))
	_, err1 := f.w.Write(head)
	_, err2 := f.w.Write(packed)
	f.err = errors.Join(err1, err2)
}

// A snapshotReader reads a stream and trusts nothing in it.
type snapshotReader struct {
	r       *bufio.Reader
	mark    Mark
	clock   int64
	packed  []byte
	payload []byte
	rows    uint64
	lastKey []byte
}

func openSnapshot(r io.Reader) (*snapshotReader, error) {
	sr := &snapshotReader{r: bufio.NewReaderSize(r, 64*dc.KiB)}
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(sr.r, magic); err != nil || string(magic) != snapshotMagic {
		return nil, dc.Errorf(dc.Corrupt, "", "", "not a snapshot stream, or of an unknown version: it begins with %q", magic)
	}
	kind, d, err := sr.frame()
	if err != nil {
		return nil, err
	}
	sr.mark = Mark{dc.Index(d.uvarint()), dc.Term(d.uvarint())}
	if sr.clock = d.varint(); kind != 'h' || d.bad || len(d.b) > 0 {
		return nil, dc.Errorf(dc.Corrupt, "", "", "the head of the snapshot stream does not decode")
	}
	return sr, nil
}

// frame reads one frame. What it returns is valid until the next call.
func (sr *snapshotReader) frame() (kind byte, d decoder, err error) {
	var head [frameHeaderLen]byte
	if _, err := io.ReadFull(sr.r, head[:]); err != nil {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "the snapshot stream is cut short after %d rows: %w", sr.rows, err)
	}
	size, packed := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if size == 0 || size > maxFrameBytes || packed > uint32(s2.MaxEncodedLen(maxFrameBytes)) {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "the snapshot stream has a frame of %d bytes after %d rows", size, sr.rows)
	}
	sr.packed = append(sr.packed[:0], make([]byte, packed)...)
	if _, err := io.ReadFull(sr.r, sr.packed); err != nil {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "the snapshot stream is cut short after %d rows: %w", sr.rows, err)
	}
	if crc32.Checksum(sr.packed, castagnoli) != binary.BigEndian.Uint32(head[8:]) {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "a frame of the snapshot stream does not match its checksum after %d rows", sr.rows)
	}
	if n, err := s2.DecodedLen(sr.packed); err != nil || n != int(size) {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "a frame of the snapshot stream has the wrong length after %d rows", sr.rows)
	}
	// A new buffer for each frame: rows are handed on as parts of it.
	if sr.payload, err = s2.Decode(nil, sr.packed); err != nil {
		return 0, d, dc.Errorf(dc.Corrupt, "", "", "a frame of the snapshot stream does not unpack after %d rows: %w", sr.rows, err)
	}
	return sr.payload[0], decoder{b: sr.payload[1:]}, nil
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
