package command

import (
	"encoding/binary"
	"fmt"

	"missingos/srv/dc"
)

// envelopeVersion is the first byte of every encoded command.
const envelopeVersion = 1

// MaxEnvelopeBytes is how much longer an encoded command is than its body, at most.
const MaxEnvelopeBytes = 1 + 8 + 3*binary.MaxVarintLen64

// Encode puts a command of a service into the envelope that makes it apply once. A zero id.Client means that the command may be
// applied as often as it arrives (it is idempotent by itself). The result is a new slice.
func Encode(id dc.RequestID, body []byte) []byte {
	b := make([]byte, 0, MaxEnvelopeBytes+len(body))
	b = append(b, envelopeVersion)
	b = binary.LittleEndian.AppendUint64(b, id.Client)
	b = binary.AppendUvarint(b, id.Seq)
	b = binary.AppendUvarint(b, id.Done)
	b = binary.AppendVarint(b, id.Issued)
	return append(b, body...)
}

// Decode opens an envelope; body is a part of b. An error means that b was not made by this program's Encode or an older one's: a
// replica that meets it must stop.
func Decode(b []byte) (id dc.RequestID, body []byte, err error) {
	if len(b) == 0 || b[0] != envelopeVersion {
		return id, nil, fmt.Errorf("command envelope of %d bytes has an unknown version", len(b))
	}
	if b = b[1:]; len(b) < 8 {
		return id, nil, fmt.Errorf("command envelope is cut short")
	}
	id.Client, b = binary.LittleEndian.Uint64(b), b[8:]
	for _, field := range []*uint64{&id.Seq, &id.Done} {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return id, nil, fmt.Errorf("command envelope is cut short")
		}
		*field, b = v, b[n:]
	}
	issued, n := binary.Varint(b)
	if n <= 0 {
		return id, nil, fmt.Errorf("command envelope is cut short")
	}
	id.Issued = issued
	return id, b[n:], nil
}
