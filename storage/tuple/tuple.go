package tuple

import (
	"bytes"
	"encoding/binary"
)

const (
	escape     = 0xff // after a NUL: the NUL is data
	terminator = 0x01 // after a NUL: the string ends
	signBit    = 1 << 63
)

// AppendUint appends v in eight bytes that sort as v does.
func AppendUint(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

// TakeUint reads what AppendUint appended and returns what follows it.
func TakeUint(b []byte) (v uint64, rest []byte, ok bool) {
	if len(b) < 8 {
		return 0, b, false
	}
	return binary.BigEndian.Uint64(b), b[8:], true
}

// AppendDesc appends v in eight bytes that sort from the greatest v to the least.
func AppendDesc(b []byte, v uint64) []byte { return AppendUint(b, ^v) }

// TakeDesc reads what AppendDesc appended and returns what follows it.
func TakeDesc(b []byte) (v uint64, rest []byte, ok bool) {
	v, rest, ok = TakeUint(b)
	return ^v, rest, ok
}

// AppendInt appends v in eight bytes that sort as v does, negative numbers first.
func AppendInt(b []byte, v int64) []byte { return AppendUint(b, uint64(v)^signBit) }

// TakeInt reads what AppendInt appended and returns what follows it.
func TakeInt(b []byte) (v int64, rest []byte, ok bool) {
	u, rest, ok := TakeUint(b)
	return int64(u ^ signBit), rest, ok
}

// AppendString appends s so that it sorts as s does and ends by itself; s may hold any bytes.
func AppendString[S ~string | ~[]byte](b []byte, s S) []byte {
	b = AppendPartial(b, s)
	return append(b, 0, terminator)
}

// AppendPartial appends s escaped but not terminated: the prefix of all strings that begin with s.
func AppendPartial[S ~string | ~[]byte](b []byte, s S) []byte {
	for i := range len(s) {
		b = append(b, s[i])
		if s[i] == 0 {
			b = append(b, escape)
		}
	}
	return b
}

// TakeString reads what AppendString appended and returns what follows it. The string is a copy.
func TakeString(b []byte) (s, rest []byte, ok bool) {
	s = make([]byte, 0, len(b))
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 >= len(b) {
			return nil, b, false
		}
		s = append(s, b[:i]...)
		mark := b[i+1]
		b = b[i+2:]
		switch mark {
		case terminator:
			return s, b, true
		case escape:
			s = append(s, 0)
		default:
			return nil, b, false
		}
	}
}

// PrefixEnd returns the least key greater than every key that begins with prefix; nil if there is none (all bytes 0xff, or an
// empty prefix), which means "no upper bound" in a storage.Span.
func PrefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}
