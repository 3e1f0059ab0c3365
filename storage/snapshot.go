package storage

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"missingos/srv/dc"
)

// A snapshot stream is the magic of its format, then frames: length of the payload before compression, length after, CRC-32C of the
// compressed bytes (each four bytes, big endian), the compressed payload. A payload begins with a byte that says what it is:
//
//	h  index, term, clock, and from format 2 on the key after which the stream goes on, empty if it begins with the first row, and the
//	   bytes that all rows take, about: the first frame
//	r  rows in key order: key, Badger's user meta byte, value (large values as their chunks)
//	e  the number of the stream's rows: the last frame
//
// Without the last frame a stream is cut short and refused. The shard's applied mark is not a row of the stream: it is local.
//
// The formats differ in the compression: s2 in format 1, zstd in format 2. A receiver says which it reads; one of an earlier version
// says nothing, which means 1.
const (
	frameBytes     = 256 * dc.KiB // about; a frame ends with the row that reaches it
	maxFrameBytes  = 2 * dc.MiB
	maxPackedBytes = maxFrameBytes + maxFrameBytes/4
	frameHeaderLen = 12
)

// SnapshotFormat is the highest format of a snapshot stream that [Shard.Restore] reads.
const SnapshotFormat = 2

// snapshotMagic begins a stream of a format; all are of one length.
func snapshotMagic(format int) string { return fmt.Sprintf("dcsnap%d\n", format) }

// A packer compresses the payloads of one stream.
type packer interface {
	// pack returns the compressed payload, in buf if it fits.
	pack(buf, payload []byte) []byte
	// unpack is its inverse; it fails if the result is not of size bytes.
	unpack(packed []byte, size int) ([]byte, error)
}

// newPacker makes the packer of a format, 1 or 2.
func newPacker(format int) packer {
	if format == 1 {
		return s2Packer{}
	}
	return zstdPacker{}
}

type s2Packer struct{}

func (s2Packer) pack(buf, payload []byte) []byte { return s2.Encode(buf[:cap(buf)], payload) }

func (s2Packer) unpack(packed []byte, size int) ([]byte, error) {
	if n, err := s2.DecodedLen(packed); err != nil || n != size {
		return nil, fmt.Errorf("the length is %d, not %d", n, size)
	}
	return s2.Decode(nil, packed)
}

// zstdPacker's encoder and decoder are made once and used by all streams of the process, one frame at a time each.
type zstdPacker struct{}

var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(zstdFrames), zstd.WithWindowSize(frameBytes), zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(zstdFrames), zstd.WithDecoderMaxMemory(maxFrameBytes), zstd.WithDecoderMaxWindow(maxFrameBytes))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// zstdFrames is how many frames are packed or unpacked at a time; more wait.
const zstdFrames = 2

func (zstdPacker) pack(buf, payload []byte) []byte { return zstdEncoder().EncodeAll(payload, buf[:0]) }

func (zstdPacker) unpack(packed []byte, size int) ([]byte, error) {
	b, err := zstdDecoder().DecodeAll(packed, make([]byte, 0, size))
	if err == nil && len(b) != size {
		err = fmt.Errorf("the length is %d, not %d", len(b), size)
	}
	return b, err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
	err = p.gen.physical(p.Index, nil, func(key []byte, meta byte, value []byte) error {
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
	w      *bufio.Writer
	packer packer
	buf    []byte
	err    error
}

// newFrames begins a stream, or a part of one: the magic is the caller's.
func newFrames(w io.Writer, format int) *frames {
	return &frames{w: bufio.NewWriterSize(w, 64*dc.KiB), packer: newPacker(format)}
}

// flush hands everything on.
func (f *frames) flush() error { return errors.Join(f.err, f.w.Flush()) }

func (f *frames) write(payload []byte) {
	if f.err != nil {
		return
	}
	f.buf = f.packer.pack(f.buf, payload)
	head := binary.BigEndian.AppendUint32(make([]byte, 0, frameHeaderLen), uint32(len(payload)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(f.buf)))
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(f.buf, castagnoli))
	_, err1 := f.w.Write(head)
	_, err2 := f.w.Write(f.buf)
	f.err = errors.Join(err1, err2)
}
