package topic

import (
	"missingos/storage/tuple"
)

// Rows by first byte; numbers are eight bytes, big endian.
//
//	t<topic>                    TopicState
//	b<topic><byte>              a batch
//	o<topic><offset>            the byte of the batch that begins with the offset (sparse)
//	g<topic><group>             TopicGroup
//	f<topic><epoch><offset>     TopicFlight
//	r<topic><epoch><offset>     a returned message (empty)
//	x<topic><epoch>             what is to be swept (empty); epoch 0: the topic
const (
	rowState    = 't'
	rowBatch    = 'b'
	rowOffset   = 'o'
	rowGroup    = 'g'
	rowFlight   = 'f'
	rowReturned = 'r'
	rowSweep    = 'x'
)

func key(row byte, numbers ...uint64) []byte {
	k := make([]byte, 1, 1+8*len(numbers))
	k[0] = row
	for _, n := range numbers {
		k = tuple.AppendUint(k, n)
	}
	return k
}

func groupKey(topic uint64, name string) []byte { return append(key(rowGroup, topic), name...) }

// last reads the number that a key ends in.
func last(k []byte) uint64 {
	v, _, _ := tuple.TakeUint(k[len(k)-8:])
	return v
}
