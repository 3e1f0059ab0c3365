package topic

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// Version is the version of the commands that this machine understands.
const Version = 1

// Events that the machine emits.
type (
	// Published tells that a log has grown.
	Published struct {
		Topic uint64
		Count uint64 // messages
		End   uint64 // the log's length in bytes, removed ones included
		Ms    int64  // when, log clock
	}
	// Leased tells of a delivery.
	Leased struct {
		Topic        uint64
		Group        string
		Epoch        uint64
		Offset       uint64
		Lease        uint64
		VisibilityMs int64
	}
	// Settled tells that a delivery has ended.
	Settled struct {
		Topic  uint64
		Epoch  uint64
		Offset uint64
	}
	// Ready tells that a group has messages to give beside new ones, or that it has changed so that its readers must look again.
	Ready struct {
		Topic uint64
		Group string
		Count uint64 // messages; 0: everybody must look
	}
	// Sweep tells that there are rows to be swept.
	Sweep struct{ Topic, Epoch uint64 }
	// Dropped tells that a topic is gone.
	Dropped struct{ Topic uint64 }
)

// Machine is the state machine. It has no state of its own.
type Machine struct{}

var _ storage.Machine = Machine{}

// New makes one.
func New() storage.Machine { return Machine{} }

// Apply executes one encoded command.TopicCommand.
func (Machine) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	var c command.TopicCommand
	if err := proto.Unmarshal(body, &c); err != nil {
		panic("topic: command does not decode: " + err.Error())
	}
	if c.Version != Version {
		panic(fmt.Sprintf("topic: command version %d, this program knows %d", c.Version, Version))
	}
	switch op := c.Op.(type) {
	case *command.TopicCommand_Publish:
		return publish(tx, op.Publish)
	case *command.TopicCommand_Drop:
		return nil, drop(tx, op.Drop)
	case *command.TopicCommand_Sweep:
		return sweep(tx, op.Sweep)
	case *command.TopicCommand_CreateGroup:
		return nil, createGroup(tx, op.CreateGroup)
	case *command.TopicCommand_DropGroup:
		return nil, dropGroup(tx, op.DropGroup)
	case *command.TopicCommand_SetGroup:
		return nil, setGroup(tx, op.SetGroup)
	case *command.TopicCommand_SeekGroup:
		return nil, seekGroup(tx, op.SeekGroup)
	case *command.TopicCommand_Take:
		return take(tx, op.Take)
	case *command.TopicCommand_Settle:
		return nil, settle(tx, op.Settle)
	case *command.TopicCommand_SetTopic:
		return nil, setTopic(tx, op.SetTopic)
	case *command.TopicCommand_Trim:
		return trim(tx, op.Trim)
	}
	panic(fmt.Sprintf("topic: unknown command %T", c.Op))
}

// State reads a topic; a topic nobody has used is empty. dc.NotFound if it was dropped.
func State(rd storage.Reader, op string, topic uint64) (*command.TopicState, error) {
	st := &command.TopicState{}
	load(rd, key(rowState, topic), st)
	if st.Dropped {
		return nil, dc.Errorf(dc.NotFound, op, "", "the topic was dropped")
	}
	return st, nil
}

// load reads a record; false leaves m as it is.
func load(rd storage.Reader, k []byte, m proto.Message) bool {
	value, ok := rd.Get(k)
	if !ok {
		return false
	}
	decode(k, value, m)
	return true
}

func decode(k, value []byte, m proto.Message) {
	if err := proto.Unmarshal(value, m); err != nil {
		panic(fmt.Sprintf("topic: row %q does not decode: %v", k, err))
	}
}

func store(tx storage.Tx, k []byte, m proto.Message) { tx.Set(k, encode(m)) }

func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("topic: " + err.Error()) // only for strings that are not UTF-8, which the service refuses
	}
	return b
}

// CheckLines tells whether lines can be published.
func CheckLines(op string, lines []byte) error {
	if len(lines) == 0 || lines[len(lines)-1] != '\n' {
		return dc.Errorf(dc.Invalid, op, "", "messages end with a newline each")
	}
	for rest := lines; len(rest) > 0; {
		n := bytes.IndexByte(rest, '\n')
		if n > dc.MaxValueBytes {
			return dc.Errorf(dc.TooLarge, op, "", "message of %d bytes exceeds the limit of %d (MaxValueBytes)", n, dc.MaxValueBytes)
		}
		rest = rest[n+1:]
	}
	return nil
}

func publish(tx storage.Tx, c *command.TopicPublish) ([]byte, error) {
	st, err := State(tx, "topic.publish", c.Topic)
	if err == nil {
		err = CheckLines("topic.publish", c.Lines)
	}
	if err != nil {
		return nil, err
	}
	first := st.NextOffset
	appendLines(tx, c.Topic, st, c.Lines)
	store(tx, key(rowState, c.Topic), st)
	count := st.NextOffset - first
	tx.Emit(Published{Topic: c.Topic, Count: count, End: st.NextByte, Ms: st.LastMs})
	return encode(&command.TopicPublished{First: first, Count: count, End: st.NextByte}), nil
}

func drop(tx storage.Tx, c *command.TopicDrop) error {
	st, err := State(tx, "topic.drop", c.Topic)
	if err != nil {
		return err
	}
	if messages := st.NextOffset - st.FirstOffset; c.OnlyIfEmpty && (messages > 0 || st.Groups > 0) {
		return dc.Errorf(dc.NotEmpty, "topic.drop", "", "the topic has %d messages and %d consumer groups; echo drop > .dc/ctl removes it with them", messages, st.Groups)
	}
	store(tx, key(rowState, c.Topic), &command.TopicState{Dropped: true})
	tx.Set(key(rowSweep, c.Topic, 0), nil)
	tx.Emit(Dropped{Topic: c.Topic})
	tx.Emit(Sweep{Topic: c.Topic})
	return nil
}

// sweepRows bounds the rows one sweep removes.
const sweepRows = 256

// sweep removes rows of what is to be swept, and its sweep row when none is left.
func sweep(tx storage.Tx, c *command.TopicSweep) ([]byte, error) {
	mark := key(rowSweep, c.Topic, c.Epoch)
	if _, ok := tx.Get(mark); !ok {
		return encode(&command.TopicSwept{}), nil
	}
	rows := []byte{rowFlight, rowReturned}
	prefix := key(0, c.Topic, c.Epoch)
	if c.Epoch == 0 {
		rows = []byte{rowBatch, rowOffset, rowGroup, rowFlight, rowReturned}
		prefix = key(0, c.Topic)
	}
	left := sweepRows
	for _, row := range rows {
		prefix[0] = row
		for k := range tx.Scan(storage.Span{Start: prefix, End: tuple.PrefixEnd(prefix), KeysOnly: true}) {
			if left == 0 {
				return encode(&command.TopicSwept{More: true}), nil
			}
			tx.Delete(bytes.Clone(k))
			left--
		}
	}
	tx.Delete(mark)
	if c.Epoch == 0 { // the groups' own sweeps are done by this one
		for k := range tx.Scan(storage.Span{Start: key(rowSweep, c.Topic), End: tuple.PrefixEnd(key(rowSweep, c.Topic)), KeysOnly: true}) {
			tx.Delete(bytes.Clone(k))
		}
	}
	return encode(&command.TopicSwept{}), nil
}

// Sweeps lists what is to be swept, up to limit.
func Sweeps(rd storage.Reader, limit int) (all []Sweep) {
	for k := range rd.Scan(storage.Span{Start: []byte{rowSweep}, End: []byte{rowSweep + 1}, KeysOnly: true}) {
		if len(all) == limit {
			break
		}
		topic, rest, _ := tuple.TakeUint(k[1:])
		all = append(all, Sweep{Topic: topic, Epoch: last(rest)})
	}
	return all
}
