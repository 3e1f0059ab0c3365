package kv

import (
	"bytes"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/tuple"
)

// Rows by first byte:
//
//	r<table><segment>...   KVRow; segments end by themselves, so keys sort as paths: all below "a" before "a-b"
//	t<table>               KVTable
//	g<table><segment>      KVRange of a table that was split; the segment is its start, none that of the first
//	s                      KVState
//	x<ms><table><path>     when a row is to go (empty)
const (
	rowRow    = 'r'
	rowTable  = 't'
	rowExpiry = 'x'
	rowRange  = 'g'
)

var stateKey = []byte{'s'}

func tableKey(table uint64) []byte    { return tuple.AppendUint([]byte{rowTable}, table) }
func tablePrefix(table uint64) []byte { return tuple.AppendUint([]byte{rowRow}, table) }

// rowKey is the key of a row, and the prefix of everything below it.
func rowKey(table uint64, key []byte) []byte {
	b := tablePrefix(table)
	for segment := range bytes.SplitSeq(key, []byte{'/'}) {
		b = tuple.AppendString(b, segment)
	}
	return b
}

// partialKey is the prefix of all keys whose text begins with prefix.
func partialKey(table uint64, prefix []byte) []byte {
	b := tablePrefix(table)
	if len(prefix) == 0 {
		return b
	}
	segments := bytes.Split(prefix, []byte{'/'})
	for _, s := range segments[:len(segments)-1] {
		b = tuple.AppendString(b, s)
	}
	return tuple.AppendPartial(b, segments[len(segments)-1])
}

// dirKey is the prefix of everything in a directory; "" is the table.
func dirKey(table uint64, dir []byte) []byte {
	if len(dir) == 0 {
		return tablePrefix(table)
	}
	return rowKey(table, dir)
}

// pathOf is rowKey's inverse.
func pathOf(stored []byte) []byte {
	rest := stored[9:]
	var path []byte
	for len(rest) > 0 {
		segment, after, ok := tuple.TakeString(rest)
		if !ok {
			panic("kv: a row's key does not decode")
		}
		if path != nil {
			path = append(path, '/')
		}
		path, rest = append(path, segment...), after
	}
	return path
}

func under(prefix []byte) storage.Span {
	return storage.Span{Start: prefix, End: tuple.PrefixEnd(prefix)}
}

// CheckKey tells what is wrong with a key: empty, too long, an empty segment, or one that is longer than a file name may be.
func CheckKey(op string, key []byte) error {
	if len(key) == 0 {
		return dc.Errorf(dc.Invalid, op, "", "a key cannot be empty")
	}
	if len(key) > dc.MaxKeyBytes {
		return dc.Errorf(dc.NameTooLong, op, shorten(key), "a key of %d bytes exceeds the limit of %d KiB (MaxKeyBytes)", len(key), dc.MaxKeyBytes/dc.KiB)
	}
	for segment := range bytes.SplitSeq(key, []byte{'/'}) {
		if len(segment) == 0 {
			return dc.Errorf(dc.Invalid, op, shorten(key), "a key is a path: it has no empty part, and no slash at either end")
		}
		if len(segment) > dc.MaxNameBytes {
			return dc.Errorf(dc.NameTooLong, op, shorten(key), "a part of %d bytes between slashes exceeds the limit of %d (MaxNameBytes)", len(segment), dc.MaxNameBytes)
		}
	}
	return nil
}

// shorten keeps error texts readable.
func shorten(key []byte) string {
	const most = 80
	if len(key) > most {
		return string(key[:most]) + "..."
	}
	return string(key)
}

// CheckValue tells whether a value is over the limit.
func CheckValue(op string, key []byte, size uint64) error {
	if size > dc.MaxValueBytes {
		return dc.Errorf(dc.TooLarge, op, shorten(key), "a value of %d bytes exceeds the limit of 1 MiB of a row (MaxValueBytes); keep it in /dc/data", size)
	}
	return nil
}
