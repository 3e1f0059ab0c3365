package lock

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Version is the version of the commands that this machine makes; it understands all up to that. Those of version 2 note what files were before
// (see past.go); an old log replays to what it was.
const Version = 2

// Events that the machine emits beside the *command.LockHistory of every revision.
type (
	// Opened tells of a new session.
	Opened struct{ Session *command.LockSession }
	// Ended tells of the end of a session; More says that it must still be reaped.
	Ended struct {
		Session uint64
		More    bool
	}
	// Due asks for a LockAdvance of a lock when the cluster clock reaches AtMs.
	Due struct {
		Path string
		AtMs int64
	}
	// Dequeued tells a waiter that it waits no longer and has not got the lock.
	Dequeued struct {
		Path           string
		Session, Owner uint64
	}
)

// Machine is the state machine. It has no state of its own.
type Machine struct{}

var _ storage.Machine = Machine{}

// New makes one.
func New() storage.Machine { return Machine{} }

// Apply executes one encoded command.LockCommand; the result is an encoded command.LockResult.
func (Machine) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	var c command.LockCommand
	if err := proto.Unmarshal(body, &c); err != nil {
		panic("lock: command does not decode: " + err.Error())
	}
	if c.Version < 1 || c.Version > Version {
		panic(fmt.Sprintf("lock: command version %d, this program knows %d", c.Version, Version))
	}
	s := newStage(tx)
	s.past = c.Version >= 2
	res, err := s.apply(&c)
	if err != nil {
		return nil, err
	}
	s.flush()
	if res.Revision == 0 {
		res.Revision = s.state.Revision
	}
	return encode(res), nil
}

func (s *stage) apply(c *command.LockCommand) (*command.LockResult, error) {
	switch op := c.Op.(type) {
	case *command.LockCommand_Create:
		return s.createFile(op.Create)
	case *command.LockCommand_Put:
		return s.putFile(op.Put)
	case *command.LockCommand_Remove:
		return s.removeFile(op.Remove)
	case *command.LockCommand_Rename:
		return s.rename(op.Rename)
	case *command.LockCommand_SetAttr:
		return s.setAttr(op.SetAttr)
	case *command.LockCommand_Txn:
		return s.txn(op.Txn)
	case *command.LockCommand_Acquire:
		return s.acquire(op.Acquire)
	case *command.LockCommand_Release:
		return s.release(op.Release)
	case *command.LockCommand_Advance:
		return s.advance(op.Advance)
	case *command.LockCommand_OpenSession:
		return s.openSession(op.OpenSession)
	case *command.LockCommand_EndSession:
		return s.endSession(op.EndSession)
	case *command.LockCommand_Reap:
		return s.reapSession(op.Reap)
	case *command.LockCommand_TakeOver:
		s.state.Epoch++
		return &command.LockResult{Epoch: s.state.Epoch}, nil
	case *command.LockCommand_Compact:
		return s.compact(op.Compact)
	case *command.LockCommand_Settings:
		return s.settings(op.Settings)
	}
	panic(fmt.Sprintf("lock: unknown command %T", c.Op))
}

func (s *stage) settings(c *command.LockSettings) (*command.LockResult, error) {
	if c.LockDelayMs != nil {
		if int64(*c.LockDelayMs) > dc.MaxLockDelay.Milliseconds() {
			return nil, dc.Errorf(dc.Invalid, "lock.ctl", "", "a lock-delay of %d ms exceeds the limit of %s (MaxLockDelay)", *c.LockDelayMs, dc.MaxLockDelay)
		}
		s.state.LockDelayMs = *c.LockDelayMs
	}
	if c.HistoryAgeMs != nil {
		if *c.HistoryAgeMs < 0 {
			return nil, dc.Errorf(dc.Invalid, "lock.ctl", "", "a history of less than no time")
		}
		s.state.HistoryAgeMs = *c.HistoryAgeMs
	}
	if c.HistoryBytes != nil {
		if *c.HistoryBytes > dc.MaxLockHistoryB {
			return nil, dc.Errorf(dc.Invalid, "lock.ctl", "", "history of %d bytes exceeds the limit of %d MiB (MaxLockHistoryB)", *c.HistoryBytes, dc.MaxLockHistoryB/dc.MiB)
		}
		s.state.MaxHistoryBytes = *c.HistoryBytes
	}
	if c.HistoryRevisions != nil {
		if *c.HistoryRevisions > dc.MaxLockHistory {
			return nil, dc.Errorf(dc.Invalid, "lock.ctl", "", "%d revisions of history exceed the limit of %d (MaxLockHistory)", *c.HistoryRevisions, dc.MaxLockHistory)
		}
		s.state.MaxHistoryRevisions = *c.HistoryRevisions
	}
	return &command.LockResult{}, nil
}

// sweepRows bounds the rows of history that one command removes.
const sweepRows = 256

// compact forgets history up to c.Through. Readers see the new bound at once; rows go in bounded steps.
func (s *stage) compact(c *command.LockCompact) (*command.LockResult, error) {
	if c.Through > s.state.Revision {
		return nil, dc.Errorf(dc.Invalid, "lock.compact", "", "revision %d is in the future: the store is at %d", c.Through, s.state.Revision)
	}
	s.state.Compacted = max(s.state.Compacted, c.Through)
	span := storage.Span{Start: numberKey(rowHistory, s.state.Swept+1), End: numberKey(rowHistory, s.state.Compacted+1)}
	n := 0
	for k, v := range s.Scan(span) {
		if n >= sweepRows {
			return &command.LockResult{More: true}, nil
		}
		n++
		s.state.Swept = number(k[1:])
		s.state.HistoryBytes -= uint64(len(v))
		s.delete(k)
		h := &command.LockHistory{}
		decode(v, h)
		for _, ev := range h.Events {
			if ev.Before != nil {
				s.delete(pastKey(ev.Path, h.Revision))
				n++
			}
		}
	}
	s.state.Swept = s.state.Compacted
	return &command.LockResult{}, nil
}

// Command wraps one operation, a pointer to a command.Lock* message, into a command of this version.
func Command(op any) *command.LockCommand {
	c := &command.LockCommand{Version: Version}
	switch op := op.(type) {
	case *command.LockCreate:
		c.Op = &command.LockCommand_Create{Create: op}
	case *command.LockPut:
		c.Op = &command.LockCommand_Put{Put: op}
	case *command.LockRemove:
		c.Op = &command.LockCommand_Remove{Remove: op}
	case *command.LockRename:
		c.Op = &command.LockCommand_Rename{Rename: op}
	case *command.LockSetAttr:
		c.Op = &command.LockCommand_SetAttr{SetAttr: op}
	case *command.LockTxn:
		c.Op = &command.LockCommand_Txn{Txn: op}
	case *command.LockAcquire:
		c.Op = &command.LockCommand_Acquire{Acquire: op}
	case *command.LockRelease:
		c.Op = &command.LockCommand_Release{Release: op}
	case *command.LockAdvance:
		c.Op = &command.LockCommand_Advance{Advance: op}
	case *command.LockOpenSession:
		c.Op = &command.LockCommand_OpenSession{OpenSession: op}
	case *command.LockEndSession:
		c.Op = &command.LockCommand_EndSession{EndSession: op}
	case *command.LockReap:
		c.Op = &command.LockCommand_Reap{Reap: op}
	case *command.LockTakeOver:
		c.Op = &command.LockCommand_TakeOver{TakeOver: op}
	case *command.LockCompact:
		c.Op = &command.LockCommand_Compact{Compact: op}
	case *command.LockSettings:
		c.Op = &command.LockCommand_Settings{Settings: op}
	default:
		panic(fmt.Sprintf("lock: no command for %T", op))
	}
	return c
}
