package lock

import (
	"encoding/binary"
	"strings"

	"missingos/srv/dc"
)

// Rows by first byte. Names hold neither NUL nor slash, so a NUL ends a path and the children of a directory are one span in
// name order.
//
//	r                        LockState
//	f<dir>\0<name>           LockFile (the root's own record has no dir and no name)
//	c<path>                  a file's value
//	l<path>                  LockQueue
//	h<path>\0<session><owner>  LockHold of a holder
//	w<path>\0<ticket>        LockHold of a waiter
//	e<path>\0<session><owner>  a descriptor that holds an ephemeral file
//	o<session><kind><owner><path>  what a session has: kind h, w (value: ticket) or e
//	d<path>                  when the queue must be looked at again (cluster clock)
//	s<session>  n<node>      LockSession, LockNode
//	v<revision>              LockHistory
//	p<dir>\0<name>\0<revision>  empty: this revision has an event of the path
const (
	rowState   = 'r'
	rowFile    = 'f'
	rowValue   = 'c'
	rowQueue   = 'l'
	rowHold    = 'h'
	rowWait    = 'w'
	rowKeep    = 'e'
	rowOwned   = 'o'
	rowDue     = 'd'
	rowSession = 's'
	rowNode    = 'n'
	rowHistory = 'v'
	rowPast    = 'p'
)

var stateKey = []byte{rowState}

func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func fileKey(path string) []byte {
	dir, name := split(path)
	return append(childPrefix(dir), name...)
}

func childPrefix(dir string) []byte {
	k := make([]byte, 0, len(dir)+2+dc.MaxNameBytes)
	k = append(k, rowFile)
	k = append(k, dir...)
	return append(k, 0)
}

func pathKey(row byte, path string) []byte { return append([]byte{row}, path...) }

// ofLock is the prefix of the rows that a path has many of.
func ofLock(row byte, path string) []byte { return append(pathKey(row, path), 0) }

func holderKey(row byte, path string, session, owner uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(ofLock(row, path), session), owner)
}

func waiterKey(path string, ticket uint64) []byte {
	return binary.BigEndian.AppendUint64(ofLock(rowWait, path), ticket)
}

func numberKey(row byte, n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{row}, n) }

func ownedKey(session uint64, kind byte, owner uint64, path string) []byte {
	k := append(numberKey(rowOwned, session), kind)
	return append(binary.BigEndian.AppendUint64(k, owner), path...)
}

// parseOwned reads what follows the session in an owned key.
func parseOwned(k []byte) (kind byte, owner uint64, path string) {
	k = k[9:]
	return k[0], binary.BigEndian.Uint64(k[1:9]), string(k[9:])
}

// after is the first key that has no such prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// CheckPath tells whether path can name a file of the store: no empty, "." or ".." element, none over dc.MaxNameBytes, no NUL, and not the
// reserved name ".dc". The root "" is fine.
func CheckPath(op, path string) error {
	if path == "" {
		return nil
	}
	if len(path) > dc.MaxPathBytes {
		return dc.Errorf(dc.NameTooLong, op, path[:64]+"...", "path of %d bytes exceeds the limit of %d (MaxPathBytes)", len(path), dc.MaxPathBytes)
	}
	if strings.IndexByte(path, 0) >= 0 {
		return dc.Errorf(dc.Invalid, op, strings.ReplaceAll(path, "\x00", "?"), "a name cannot hold a NUL byte")
	}
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "" || name == "." || name == "..":
			return dc.Errorf(dc.Invalid, op, path, "a path is names joined by single slashes, relative to /dc/lock")
		case name == ".dc":
			return dc.Errorf(dc.Invalid, op, path, "the name .dc is reserved for control files")
		case len(name) > dc.MaxNameBytes:
			return dc.Errorf(dc.NameTooLong, op, path, "name of %d bytes exceeds the limit of %d (MaxNameBytes)", len(name), dc.MaxNameBytes)
		}
	}
	return nil
}
