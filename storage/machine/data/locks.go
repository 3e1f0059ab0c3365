package data

import (
	"encoding/binary"

	"missingos/storage"
	"missingos/storage/command"
)

// lockEpoch begins an epoch of locks and answers with its number.
func (o *operation) lockEpoch() (*command.DataResult, error) {
	l := &command.DataLocks{}
	if raw, ok := o.tx.Get(epochKey()); ok {
		decode("locks", raw, l)
	}
	l.Epoch++
	o.tx.Set(epochKey(), encode(l))
	return &command.DataResult{Epoch: l.Epoch}, nil
}

// lockSession registers a session or drops it; what is so already stays so.
func (o *operation) lockSession(c *command.DataLockSession) (*command.DataResult, error) {
	if c.Drop {
		o.tx.Delete(sessionKey(c.Session))
	} else {
		o.tx.Set(sessionKey(c.Session), encode(&command.DataLockSession{Session: c.Session, Node: c.Node}))
	}
	return &command.DataResult{}, nil
}

// LockSessions gives the registered sessions, in the order of their numbers, and the nodes whose mounts they are of.
func LockSessions(rd storage.Reader) []*command.DataLockSession {
	var all []*command.DataLockSession
	for _, raw := range rd.Scan(prefix(key(0, kindSession, 0))) {
		s := &command.DataLockSession{}
		decode("lock session", raw, s)
		all = append(all, s)
	}
	return all
}

// LockSession finds a registered session.
func LockSession(rd storage.Reader, session uint64) (*command.DataLockSession, bool) {
	raw, ok := rd.Get(sessionKey(session))
	if !ok {
		return nil, false
	}
	s := &command.DataLockSession{}
	decode("lock session", raw, s)
	return s, true
}

func sessionKey(session uint64) []byte {
	return binary.BigEndian.AppendUint64(key(0, kindSession, 8), session)
}
