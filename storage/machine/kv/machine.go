package kv

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Version is the version of the commands that this machine understands.
const Version = 1

const sweepRows = 512 // removed by one command

// Dropped is emitted when a table is dropped and when a sweep leaves rows.
type Dropped struct{ Table uint64 }

// Machine is the state machine. It has no state of its own.
type Machine struct{}

var _ storage.Machine = Machine{}

// New makes one.
func New() storage.Machine { return Machine{} }

// Apply executes one encoded command.KVCommand; the result is an encoded command.KVResult.
func (Machine) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	var c command.KVCommand
	if err := proto.Unmarshal(body, &c); err != nil {
		panic("kv: command does not decode: " + err.Error())
	}
	if c.Version != Version {
		panic(fmt.Sprintf("kv: command version %d, this program knows %d", c.Version, Version))
	}
	res, err := apply(tx, &c)
	if err != nil {
		return nil, err
	}
	return encode(res), nil
}

func apply(tx storage.Tx, c *command.KVCommand) (*command.KVResult, error) {
	switch op := c.Op.(type) {
	case *command.KVCommand_Put:
		return staged(tx, "kv.put", op.Put.Table, func(s *stage) (*command.KVResult, error) { return s.put(op.Put) })
	case *command.KVCommand_Remove:
		return staged(tx, "kv.remove", op.Remove.Table, func(s *stage) (*command.KVResult, error) { return s.remove(op.Remove) })
	case *command.KVCommand_Mkdir:
		return staged(tx, "kv.mkdir", op.Mkdir.Table, func(s *stage) (*command.KVResult, error) { return s.mkdir(op.Mkdir) })
	case *command.KVCommand_Rename:
		return staged(tx, "kv.rename", op.Rename.Table, func(s *stage) (*command.KVResult, error) { return s.rename(op.Rename) })
	case *command.KVCommand_SetAttr:
		return staged(tx, "kv.setattr", op.SetAttr.Table, func(s *stage) (*command.KVResult, error) { return s.setAttr(op.SetAttr) })
	case *command.KVCommand_Txn:
		return staged(tx, "kv.txn", op.Txn.Table, func(s *stage) (*command.KVResult, error) { return s.txn(op.Txn) })
	case *command.KVCommand_Load:
		return staged(tx, "kv.load", op.Load.Table, func(s *stage) (*command.KVResult, error) { return s.load(op.Load) })
	case *command.KVCommand_SetTable:
		return staged(tx, "kv.ctl", op.SetTable.Table, func(s *stage) (*command.KVResult, error) { return s.setTable(op.SetTable) })
	case *command.KVCommand_Expire:
		return expire(tx)
	case *command.KVCommand_Drop:
		return drop(tx, op.Drop)
	case *command.KVCommand_Sweep:
		return sweep(tx, op.Sweep)
	case *command.KVCommand_Split:
		return split(tx, op.Split)
	}
	panic(fmt.Sprintf("kv: unknown command %T", c.Op))
}

// staged runs a command on a table and writes what it staged if it succeeded.
func staged(tx storage.Tx, op string, table uint64, run func(*stage) (*command.KVResult, error)) (*command.KVResult, error) {
	s, err := newStage(tx, op, table)
	if err != nil {
		return nil, err
	}
	res, err := run(s)
	if err != nil {
		return nil, err
	}
	s.flush()
	res.Revision = s.state.Revision
	return res, nil
}

// without gives a row as results carry it: with its size, without its value.
func without(r *command.KVRow) *command.KVRow {
	return &command.KVRow{
		Revision: r.Revision, Created: r.Created, MtimeMs: r.MtimeMs, Mode: r.Mode, Uid: r.Uid, Gid: r.Gid, Dir: r.Dir, Size: uint64(len(r.Value)), ExpiresMs: r.ExpiresMs,
	}
}

func (s *stage) put(c *command.KVPut) (*command.KVResult, error) {
	const op = "kv.put"
	old, err := s.place(op, c.Key)
	switch {
	case err != nil:
		return nil, err
	case old != nil && c.Exclusive:
		return nil, dc.Errorf(dc.Exists, op, shorten(c.Key), "there is a row already")
	case c.IfCreated != 0 && (old == nil || old.Created != c.IfCreated):
		return nil, dc.Errorf(dc.Stale, op, shorten(c.Key), "the row was removed or replaced since it was opened")
	case old == nil && c.MustExist:
		return nil, dc.Errorf(dc.NotFound, op, shorten(c.Key), "")
	case c.How == command.KVHow_KV_HOW_TOUCH && old != nil:
		return &command.KVResult{Row: without(old)}, nil
	}
	value, err := newValue(c, old.GetValue())
	if err != nil {
		return nil, err
	}
	return &command.KVResult{Row: without(s.write(c.Key, value, old, c.How == command.KVHow_KV_HOW_REPLACE, c.Owner))}, nil
}

// newValue gives the value that a put makes of the old one.
func newValue(c *command.KVPut, old []byte) ([]byte, error) {
	size := uint64(len(c.Data))
	switch c.How {
	case command.KVHow_KV_HOW_APPEND:
		size += uint64(len(old))
	case command.KVHow_KV_HOW_PATCH:
		size = max(uint64(len(old)), c.Offset+size)
	case command.KVHow_KV_HOW_RESIZE:
		size = c.Offset
	}
	if err := CheckValue("kv.put", c.Key, size); err != nil {
		return nil, err
	}
	value := make([]byte, size)
	switch c.How {
	case command.KVHow_KV_HOW_APPEND:
		copy(value[copy(value, old):], c.Data)
	case command.KVHow_KV_HOW_PATCH:
		copy(value, old)
		copy(value[c.Offset:], c.Data)
	case command.KVHow_KV_HOW_RESIZE:
		copy(value, old)
	default:
		copy(value, c.Data)
	}
	return value, nil
}

func (s *stage) remove(c *command.KVRemove) (*command.KVResult, error) {
	const op = "kv.remove"
	old := s.row(c.Key)
	isDir := old.GetDir() || old == nil && s.below(c.Key)
	switch {
	case old == nil && !isDir:
		return nil, dc.Errorf(dc.NotFound, op, shorten(c.Key), "")
	case isDir && !c.Dir:
		return nil, dc.Errorf(dc.IsDir, op, shorten(c.Key), "")
	case !isDir && c.Dir:
		return nil, dc.Errorf(dc.NotDir, op, shorten(c.Key), "")
	case isDir && s.below(c.Key):
		return nil, dc.Errorf(dc.NotEmpty, op, shorten(c.Key), "there are columns below it")
	}
	s.nextRevision()
	s.set(c.Key, nil)
	s.keepParent(c.Key)
	return &command.KVResult{}, nil
}

// keepParent leaves a mark for the directory of a removed key if nothing else holds it there: a directory ends by rmdir, not with its last row.
func (s *stage) keepParent(key []byte) {
	i := bytes.LastIndexByte(key, '/')
	if i < 0 || s.row(key[:i]) != nil || s.below(key[:i]) {
		return
	}
	s.set(key[:i], &command.KVRow{Dir: true, Mode: 0o755, Revision: s.state.Revision, Created: s.state.Revision, MtimeMs: s.tx.Clock()})
}

func (s *stage) mkdir(c *command.KVMkdir) (*command.KVResult, error) {
	const op = "kv.mkdir"
	if err := CheckKey(op, c.Key); err != nil {
		return nil, err
	}
	if s.row(c.Key) != nil || s.below(c.Key) {
		return nil, dc.Errorf(dc.Exists, op, shorten(c.Key), "")
	}
	if err := s.checkParents(op, c.Key); err != nil {
		return nil, err
	}
	rev := s.nextRevision()
	r := &command.KVRow{Dir: true, Revision: rev, Created: rev, MtimeMs: s.tx.Clock(), Mode: c.Owner.GetMode(), Uid: c.Owner.GetUid(), Gid: c.Owner.GetGid()}
	s.set(c.Key, r)
	return &command.KVResult{Row: without(r)}, nil
}

func (s *stage) setAttr(c *command.KVSetAttr) (*command.KVResult, error) {
	const op = "kv.setattr"
	old := s.row(c.Key)
	if old == nil {
		if !s.below(c.Key) {
			return nil, dc.Errorf(dc.NotFound, op, shorten(c.Key), "")
		}
		old = &command.KVRow{Dir: true, Mode: 0o755, Created: s.state.Revision}
	}
	r := proto.CloneOf(old)
	if c.Mode != nil {
		r.Mode = *c.Mode & 0o7777
	}
	if c.Uid != nil {
		r.Uid = *c.Uid
	}
	if c.Gid != nil {
		r.Gid = *c.Gid
	}
	if c.MtimeMs != nil {
		r.MtimeMs = *c.MtimeMs
	}
	if c.TtlMs != nil {
		if err := CheckTTL(op, *c.TtlMs); err != nil {
			return nil, err
		}
		if r.Dir {
			return nil, dc.Errorf(dc.IsDir, op, shorten(c.Key), "a time to live is a row's; `ttl` in the table's ctl sets that of all new ones")
		}
		r.ExpiresMs = s.end(*c.TtlMs)
	}
	s.nextRevision() // the group's; the row's version is that of its value
	s.set(c.Key, r)
	return &command.KVResult{Row: without(r)}, nil
}

func (s *stage) load(c *command.KVLoad) (*command.KVResult, error) {
	if len(c.Rows) > dc.MaxKVLoadRows {
		return nil, dc.Errorf(dc.TooLarge, "kv.load", "", "%d rows in one command exceed the limit of %d (MaxKVLoadRows)", len(c.Rows), dc.MaxKVLoadRows)
	}
	for _, p := range c.Rows {
		old, err := s.place("kv.load", p.Key)
		if err != nil {
			return nil, err
		}
		if err := CheckValue("kv.load", p.Key, uint64(len(p.Value))); err != nil {
			return nil, err
		}
		s.write(p.Key, p.Value, old, true, c.Owner)
	}
	return &command.KVResult{}, nil
}

// drop sets a table's tombstone. Doing it again is fine.
func drop(tx storage.Tx, c *command.KVDrop) (*command.KVResult, error) {
	t := loadTable(tx, c.Table)
	if t.Dropped {
		return &command.KVResult{}, nil
	}
	if c.OnlyIfEmpty {
		for range tx.Scan(storage.Span{Start: tablePrefix(c.Table), End: under(tablePrefix(c.Table)).End, KeysOnly: true}) {
			return nil, dc.Errorf(dc.NotEmpty, "kv.drop", "", "the table has rows; `echo drop > .dc/ctl` in it drops it with them")
		}
	}
	t.Dropped, t.MtimeMs = true, tx.Clock()
	tx.Set(tableKey(c.Table), encode(t))
	tx.Emit(Dropped{Table: c.Table})
	return &command.KVResult{}, nil
}

// sweep removes some rows of a dropped table.
func sweep(tx storage.Tx, c *command.KVSweep) (*command.KVResult, error) {
	t := loadTable(tx, c.Table)
	if !t.Dropped {
		return nil, dc.Errorf(dc.Invalid, "kv.sweep", "", "table %d was not dropped", c.Table)
	}
	span := under(tablePrefix(c.Table))
	span.KeysOnly = true
	var keys [][]byte
	more := false
	for k := range tx.Scan(span) {
		if len(keys) == sweepRows {
			more = true
			break
		}
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		tx.Delete(k)
	}
	if !more {
		t.Rows, t.Bytes, t.Swept = 0, 0, true
		forgetRanges(tx, c.Table, t)
		tx.Set(tableKey(c.Table), encode(t))
	}
	return &command.KVResult{More: more}, nil
}

// Command wraps one operation into a command of this version and encodes it.
func Command(op any) ([]byte, error) {
	c := &command.KVCommand{Version: Version}
	switch op := op.(type) {
	case *command.KVPut:
		c.Op = &command.KVCommand_Put{Put: op}
	case *command.KVRemove:
		c.Op = &command.KVCommand_Remove{Remove: op}
	case *command.KVMkdir:
		c.Op = &command.KVCommand_Mkdir{Mkdir: op}
	case *command.KVRename:
		c.Op = &command.KVCommand_Rename{Rename: op}
	case *command.KVSetAttr:
		c.Op = &command.KVCommand_SetAttr{SetAttr: op}
	case *command.KVTxn:
		c.Op = &command.KVCommand_Txn{Txn: op}
	case *command.KVLoad:
		c.Op = &command.KVCommand_Load{Load: op}
	case *command.KVDrop:
		c.Op = &command.KVCommand_Drop{Drop: op}
	case *command.KVSweep:
		c.Op = &command.KVCommand_Sweep{Sweep: op}
	case *command.KVSetTable:
		c.Op = &command.KVCommand_SetTable{SetTable: op}
	case *command.KVExpire:
		c.Op = &command.KVCommand_Expire{Expire: op}
	case *command.KVSplit:
		c.Op = &command.KVCommand_Split{Split: op}
	default:
		panic(fmt.Sprintf("kv: %T is no command", op))
	}
	return proto.Marshal(c)
}
