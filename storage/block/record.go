package block

import (
	"encoding/binary"
	"hash/crc32"

	"missingos/srv/dc/file"
)

const (
	align       = 4096
	headerBytes = 72
	magicLive   = 0x31424344 // "DCB1"
	magicDead   = 0x58424344 // "DCBX": deleted; the length still tells where the next record starts
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A header describes one record. salt, segment and offset tie it to its place, so that data that looks like a header is none.
type header struct {
	magic   uint32
	salt    uint64
	segment uint32
	bytes   uint32
	offset  int64
	id      file.BlockID
	ino     uint64
	stampMS int64
}

func checksums(n uint32) int { return (int(n) + file.ChecksumBytes - 1) / file.ChecksumBytes }

// dataOffset is where the data starts in a record of n bytes of data.
func dataOffset(n uint32) int64 { return headerBytes + 4*int64(checksums(n)) }

// recordBytes is the room a record of n bytes of data takes.
func recordBytes(n uint32) int64 { return (dataOffset(n) + int64(n) + align - 1) / align * align }

// encode gives the header and the checksums of data.
func (h *header) encode(data []byte) []byte {
	b := make([]byte, dataOffset(h.bytes))
	binary.LittleEndian.PutUint32(b, h.magic)
	binary.LittleEndian.PutUint64(b[8:], h.salt)
	binary.LittleEndian.PutUint32(b[16:], h.segment)
	binary.LittleEndian.PutUint32(b[20:], h.bytes)
	binary.LittleEndian.PutUint64(b[24:], uint64(h.offset))
	h.id.Append(b[32:32])
	binary.LittleEndian.PutUint64(b[48:], h.ino)
	binary.LittleEndian.PutUint64(b[56:], uint64(h.stampMS))
	for i := range checksums(h.bytes) {
		part := data[i*file.ChecksumBytes : min(len(data), (i+1)*file.ChecksumBytes)]
		binary.LittleEndian.PutUint32(b[headerBytes+4*i:], crc32.Checksum(part, castagnoli))
	}
	binary.LittleEndian.PutUint32(b[68:], headerSum(b))
	return b
}

// headerSum covers the header after the magic (which changes when the block is deleted) and the checksums of the data.
func headerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[4:68], castagnoli), castagnoli, b[headerBytes:])
}

// decodeHeader reads what encode wrote: b holds the header and as much of the checksums as there is.
// ok is false for anything that is not the header of a record at that place of that segment.
func decodeHeader(b []byte, salt uint64, segment uint32, offset int64) (h header, sums []byte, ok bool) {
	if len(b) < headerBytes {
		return h, nil, false
	}
	h = header{
		magic: binary.LittleEndian.Uint32(b), salt: binary.LittleEndian.Uint64(b[8:]), segment: binary.LittleEndian.Uint32(b[16:]),
		bytes: binary.LittleEndian.Uint32(b[20:]), offset: int64(binary.LittleEndian.Uint64(b[24:])),
		ino: binary.LittleEndian.Uint64(b[48:]), stampMS: int64(binary.LittleEndian.Uint64(b[56:])),
	}
	if h.magic != magicLive && h.magic != magicDead || h.salt != salt || h.segment != segment || h.offset != offset {
		return h, nil, false
	}
	end := int(dataOffset(h.bytes))
	if h.bytes == 0 || h.bytes > maxBlock || len(b) < end {
		return h, nil, false
	}
	h.id, _ = file.ParseBlockID(b[32:48])
	return h, b[headerBytes:end], headerSum(b[:end]) == binary.LittleEndian.Uint32(b[68:])
}

// verify checks data, which starts at checksum number first.
func verify(sums []byte, first int, data []byte) bool {
	for i := 0; len(data) > 0; i++ {
		part := data[:min(len(data), file.ChecksumBytes)]
		data = data[len(part):]
		if crc32.Checksum(part, castagnoli) != binary.LittleEndian.Uint32(sums[4*(first+i):]) {
			return false
		}
	}
	return true
}
