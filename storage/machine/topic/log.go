package topic

import (
	"bytes"
	"encoding/binary"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

const (
	batchBytes = 32 * dc.KiB // a batch is closed when it has as much; a longer message is a batch of its own
	indexBytes = 16 * dc.KiB // an index row at least so many bytes apart
)

// A batch is some consecutive messages.
type batch struct {
	at     uint64 // byte of the log
	first  uint64 // offset of the first message
	count  uint64
	timeMs int64
	lines  []byte
}

func (b batch) end() uint64 { return b.at + uint64(len(b.lines)) }

func (b batch) encode() []byte {
	v := make([]byte, 0, 3*binary.MaxVarintLen64+len(b.lines))
	v = binary.AppendUvarint(v, b.first)
	v = binary.AppendUvarint(v, b.count)
	v = binary.AppendVarint(v, b.timeMs)
	return append(v, b.lines...)
}

// decodeBatch opens a batch's row; lines are a part of value.
func decodeBatch(k, value []byte) batch {
	b := batch{at: last(k)}
	n := 0
	b.first, n = binary.Uvarint(value)
	value = value[max(n, 0):]
	b.count, n = binary.Uvarint(value)
	value = value[max(n, 0):]
	b.timeMs, n = binary.Varint(value)
	b.lines = value[max(n, 0):]
	return b
}

// append writes lines to the end of a topic's log. The caller writes st.
func appendLines(tx storage.Tx, topic uint64, st *command.TopicState, lines []byte) {
	// Times in a log never go back, even if the first one came from a clock that was ahead.
	st.LastMs = max(st.LastMs, tx.Clock())
	for len(lines) > 0 {
		b := batch{at: st.NextByte, first: st.NextOffset, timeMs: st.LastMs}
		n := 0
		for n < len(lines) {
			length := bytes.IndexByte(lines[n:], '\n') + 1
			if n > 0 && n+length > batchBytes {
				break
			}
			n += length
			b.count++
		}
		b.lines, lines = lines[:n], lines[n:]
		tx.Set(key(rowBatch, topic, b.at), b.encode())
		if b.at == st.FirstByte || b.at >= st.IndexedByte+indexBytes {
			tx.Set(key(rowOffset, topic, b.first), tuple.AppendUint(nil, b.at))
			st.IndexedByte = b.at
		}
		st.NextByte = b.end()
		st.NextOffset += b.count
	}
}

// scan yields batches from the one that holds byte at on. Their lines are valid for one step.
func scan(rd storage.Reader, topic, at uint64, yield func(batch) bool) {
	from := key(rowBatch, topic, at)
	for k := range rd.Scan(storage.Span{Start: key(rowBatch, topic), End: key(rowBatch, topic, at+1), Reverse: true, KeysOnly: true}) {
		from = bytes.Clone(k)
		break
	}
	for k, v := range rd.Scan(storage.Span{Start: from, End: tuple.PrefixEnd(key(rowBatch, topic))}) {
		if !yield(decodeBatch(k, v)) {
			return
		}
	}
}

// locate finds a byte at or before the batch of a message, near it, or the first that is kept.
func locate(rd storage.Reader, topic, offset uint64) uint64 {
	for _, v := range rd.Scan(storage.Span{Start: key(rowOffset, topic), End: key(rowOffset, topic, offset+1), Reverse: true}) {
		at, _, _ := tuple.TakeUint(v)
		return at
	}
	st := &command.TopicState{}
	load(rd, key(rowState, topic), st)
	return st.FirstByte
}

// Bytes reads up to maxBytes of a topic's log from byte at on, which must be kept still; fewer only at its end.
func Bytes(rd storage.Reader, topic, at uint64, maxBytes int) []byte {
	var out []byte
	scan(rd, topic, at, func(b batch) bool {
		if at >= b.end() {
			return true
		}
		if out == nil {
			out = make([]byte, 0, maxBytes)
		}
		part := b.lines[at-b.at:]
		part = part[:min(len(part), maxBytes-len(out))]
		out = append(out, part...)
		at += uint64(len(part))
		return len(out) < maxBytes
	})
	return out
}

// A Message is one message of a log.
type Message struct {
	Offset uint64
	TimeMs int64
	Value  []byte // without the newline
}

// Messages yields messages from an offset on, until yield returns false. Values are valid for one step.
func Messages(rd storage.Reader, topic, offset uint64, yield func(Message) bool) {
	scan(rd, topic, locate(rd, topic, offset), func(b batch) bool {
		if b.first+b.count <= offset {
			return true
		}
		lines := b.lines
		for i := b.first; len(lines) > 0; i++ {
			n := bytes.IndexByte(lines, '\n')
			if n < 0 {
				return false // a row that does not end in a newline is never written
			}
			if i >= offset && !yield(Message{Offset: i, TimeMs: b.timeMs, Value: lines[:n]}) {
				return false
			}
			lines = lines[n+1:]
		}
		return true
	})
}

// message reads one message.
func message(rd storage.Reader, topic, offset uint64) (value []byte, ok bool) {
	Messages(rd, topic, offset, func(m Message) bool {
		if m.Offset == offset {
			value, ok = bytes.Clone(m.Value), true
		}
		return false
	})
	return value, ok
}

// Find gives the offset of the first message published at a time or later; the end of the log if there is none.
func Find(rd storage.Reader, topic uint64, st *command.TopicState, timeMs int64) uint64 {
	_, offset := find(rd, topic, st, timeMs)
	return offset
}

// find gives the byte and the offset at which the first batch of a time or later begins; the end of the log if there is none.
func find(rd storage.Reader, topic uint64, st *command.TopicState, timeMs int64) (at, offset uint64) {
	low, high := st.FirstByte, st.NextByte // batches before low are too old, those from high on are not
	at, offset = high, st.NextOffset
	for low < high {
		var b batch
		scan(rd, topic, low+(high-low)/2, func(x batch) bool { b = x; b.lines = bytes.Clone(x.lines); return false })
		if b.timeMs < timeMs {
			low = b.end()
		} else {
			high, at, offset = b.at, b.at, b.first
		}
	}
	return at, offset
}
