package command

import (
	"encoding/binary"
	"fmt"

	"missingos/srv/dc"
)

// The first byte of every encoded command. A replica of an earlier version stops at a command it does not know: it could not tell whether the
// fence refuses it.
const (
	envelopeVersion = 1
	envelopeFenced  = 2 // with a dc.Fence after the request id
)

// MaxEnvelopeBytes is how much longer an encoded command is than its body, at most.
const MaxEnvelopeBytes = 1 + 8 + 5*binary.MaxVarintLen64 + dc.MaxFenceLockBytes

// Encode puts a command of a service into the envelope that makes it apply once. A zero id.Client means that the command may be
// applied as often as it arrives (it is idempotent by itself). The result is a new slice.
func Encode(id dc.RequestID, body []byte) []byte {
	b := make([]byte, 0, 1+8+5*binary.MaxVarintLen64+len(id.Fence.Lock)+len(body))
	version := byte(envelopeVersion)
	if !id.Fence.IsZero() {
		version = envelopeFenced
	}
	b = append(b, version)
	b = binary.LittleEndian.AppendUint64(b, id.Client)
	b = binary.AppendUvarint(b, id.Seq)
	b = binary.AppendUvarint(b, id.Done)
	b = binary.AppendVarint(b, id.Issued)
	if version == envelopeFenced {
		b = binary.AppendUvarint(b, id.Fence.Token)
		b = binary.AppendUvarint(b, uint64(len(id.Fence.Lock)))
		b = append(b, id.Fence.Lock...)
	}
	return append(b, body...)
}

// Decode opens an envelope; body is a part of b. An error means that b was not made by this program's Encode or an older one's: a
// replica that meets it must stop.
func Decode(b []byte) (id dc.RequestID, body []byte, err error) {
	if len(b) == 0 || b[0] != envelopeVersion && b[0] != envelopeFenced {
		return id, nil, fmt.Errorf("command envelope of %d bytes has an unknown version", len(b))
	}
	fenced := b[0] == envelopeFenced
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
	id.Issued, b = issued, b[n:]
	if fenced {
		id.Fence, b, err = decodeFence(b)
	}
	return id, b, err
}

func decodeFence(b []byte) (f dc.Fence, rest []byte, err error) {
	token, n := binary.Uvarint(b)
	if n <= 0 {
		return f, nil, fmt.Errorf("command envelope is cut short")
	}
	b = b[n:]
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return f, nil, fmt.Errorf("command envelope is cut short")
	}
	b = b[n:]
	return dc.Fence{Lock: string(b[:size]), Token: token}, b[size:], nil
}
