package data

import (
	"bytes"
	"encoding/binary"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
)

// Row kinds, the third byte of every key.
const (
	kindBlock   = 'B' // block id -> DataBlock
	kindExtent  = 'C' // inode, offset -> DataExtent
	kindDentry  = 'D' // directory, name -> DataDentry
	kindGarbage = 'G' // node, block id -> time of deletion
	kindInode   = 'I' // inode -> DataInode
	kindEpoch   = 'K' // -> DataLocks
	kindLink    = 'L' // inode, directory, name -> nothing; only while an inode has several names
	kindOrphan  = 'P' // inode -> time it lost its last name
	kindSession = 'S' // session -> DataLockSession
	kindUsage   = 'U' // -> DataUsage
	kindXattr   = 'X' // inode, name -> value
)

const prefixBytes = 3

func key(slot uint16, kind byte, size int) []byte {
	k := make([]byte, 0, prefixBytes+size)
	return append(binary.BigEndian.AppendUint16(k, slot), kind)
}

func inoKey(kind byte, ino file.Ino, size int) []byte {
	return binary.BigEndian.AppendUint64(key(ino.Slot(), kind, 8+size), uint64(ino))
}

func inodeKey(ino file.Ino) []byte  { return inoKey(kindInode, ino, 0) }
func orphanKey(ino file.Ino) []byte { return inoKey(kindOrphan, ino, 0) }
func epochKey() []byte              { return key(0, kindEpoch, 0) }
func usageKey(slot uint16) []byte   { return key(slot, kindUsage, 0) }

func dentryKey(dir file.Ino, name []byte) []byte {
	return append(inoKey(kindDentry, dir, len(name)), name...)
}

func xattrKey(ino file.Ino, name []byte) []byte {
	return append(inoKey(kindXattr, ino, len(name)), name...)
}

func linkKey(ino, dir file.Ino, name []byte) []byte {
	k := binary.BigEndian.AppendUint64(inoKey(kindLink, ino, 8+len(name)), uint64(dir))
	return append(k, name...)
}

func extentKey(ino file.Ino, off int64) []byte {
	return binary.BigEndian.AppendUint64(inoKey(kindExtent, ino, 8), uint64(off))
}

func extentOffset(k []byte) int64 { return int64(binary.BigEndian.Uint64(k[prefixBytes+8:])) }

func blockKey(slot uint16, id []byte) []byte {
	return append(key(slot, kindBlock, len(id)), id...)
}

func garbageKey(slot uint16, node dc.NodeID, id []byte) []byte {
	k := binary.BigEndian.AppendUint64(key(slot, kindGarbage, 8+len(id)), uint64(node))
	return append(k, id...)
}

// afterPrefix is the smallest key above all keys that start with p.
func afterPrefix(p []byte) []byte {
	end := bytes.Clone(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func prefix(p []byte) storage.Span { return storage.Span{Start: p, End: afterPrefix(p)} }

// after selects the keys under p that are greater than k, which has prefix p (or is p itself for all).
func after(p, k []byte) storage.Span {
	return storage.Span{Start: append(bytes.Clone(k), 0), End: afterPrefix(p)}
}
