package data

import (
	"testing"

	"missingos/storage"
	"missingos/storage/command"
)

func TestEpochsGrowAndSessionsStayUntilDropped(t *testing.T) {
	w := newWorld()
	apply := func(c *command.DataCommand) *command.DataResult {
		t.Helper()
		c.Version = LockVersion
		body, err := w.run.Apply(encode(c))
		if err != nil {
			t.Fatal(err)
		}
		res := &command.DataResult{}
		decode("result", body, res)
		return res
	}
	session := func(id uint64, drop bool) {
		t.Helper()
		apply(&command.DataCommand{Op: &command.DataCommand_LockSession{LockSession: &command.DataLockSession{Session: id, Node: id + 1, Drop: drop}}})
	}
	for want := range uint64(3) {
		if got := apply(&command.DataCommand{Op: &command.DataCommand_LockEpoch{LockEpoch: &command.DataLockEpoch{}}}).Epoch; got != want+1 {
			t.Fatalf("epoch %d, want %d", got, want+1)
		}
	}
	session(9, false)
	session(3, false)
	session(9, false) // once more
	session(5, true)  // never was
	all := func() (ids []uint64) {
		_ = w.run.View(func(rd storage.Reader) error {
			for _, s := range LockSessions(rd) {
				if s.Node != s.Session+1 {
					t.Errorf("session %d is node %d's", s.Session, s.Node)
				}
				ids = append(ids, s.Session)
			}
			return nil
		})
		return ids
	}
	if ids := all(); len(ids) != 2 || ids[0] != 3 || ids[1] != 9 {
		t.Fatalf("sessions %v", ids)
	}
	session(3, true)
	if ids := all(); len(ids) != 1 || ids[0] != 9 {
		t.Fatalf("sessions %v", ids)
	}
}

// Commands about files are never proposed in the version that only knows of locks: nodes of 0.3.0 stop at it.
func TestOnlyLocksNeedTheVersionOfLocks(t *testing.T) {
	for _, c := range []*command.DataCommand{
		{Op: &command.DataCommand_LockEpoch{}}, {Op: &command.DataCommand_LockSession{}},
	} {
		if v := Needs(c); v != LockVersion {
			t.Errorf("%T needs %d", c.Op, v)
		}
	}
	if v := Needs(&command.DataCommand{Op: &command.DataCommand_Clone{}}); v > Version {
		t.Errorf("a clone needs %d", v)
	}
}
