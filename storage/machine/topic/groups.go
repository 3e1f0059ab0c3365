package topic

import (
	"bytes"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// group reads a consumer group and its topic.
func group(rd storage.Reader, op string, topic uint64, name string) (*command.TopicState, *command.TopicGroup, error) {
	st, err := State(rd, op, topic)
	if err != nil {
		return nil, nil, err
	}
	g := &command.TopicGroup{}
	if !load(rd, groupKey(topic, name), g) {
		return nil, nil, dc.Errorf(dc.NotFound, op, name, "there is no such consumer group")
	}
	return st, g, nil
}

func createGroup(tx storage.Tx, c *command.TopicCreateGroup) error {
	const op = "topic.mkgroup"
	st, err := State(tx, op, c.Topic)
	if err != nil {
		return err
	}
	k := groupKey(c.Topic, c.Group)
	if _, ok := tx.Get(k); ok {
		return dc.Errorf(dc.Exists, op, c.Group, "the consumer group exists already")
	}
	if st.Groups >= dc.MaxTopicGroups {
		return dc.Errorf(dc.TooLarge, op, c.Group, "the topic has %d consumer groups, the limit (MaxTopicGroups)", st.Groups)
	}
	st.LastEpoch++
	st.Groups++
	store(tx, key(rowState, c.Topic), st)
	store(tx, k, &command.TopicGroup{Epoch: st.LastEpoch, VisibilityMs: dc.TopicVisibility.Milliseconds(), CreatedMs: tx.Clock()})
	return nil
}

func dropGroup(tx storage.Tx, c *command.TopicDropGroup) error {
	st, g, err := group(tx, "topic.rmgroup", c.Topic, c.Group)
	if err != nil {
		return err
	}
	st.Groups--
	store(tx, key(rowState, c.Topic), st)
	tx.Delete(groupKey(c.Topic, c.Group))
	abandon(tx, c.Topic, g.Epoch)
	tx.Emit(Ready{Topic: c.Topic, Group: c.Group})
	return nil
}

// abandon leaves the rows of an epoch to the sweep.
func abandon(tx storage.Tx, topic, epoch uint64) {
	tx.Set(key(rowSweep, topic, epoch), nil)
	tx.Emit(Sweep{Topic: topic, Epoch: epoch})
}

func setGroup(tx storage.Tx, c *command.TopicSetGroup) error {
	_, g, err := group(tx, "topic.ctl", c.Topic, c.Group)
	if err != nil {
		return err
	}
	if c.VisibilityMs != nil {
		if *c.VisibilityMs <= 0 || *c.VisibilityMs > dc.MaxTopicVisibility.Milliseconds() {
			return dc.Errorf(dc.Invalid, "topic.ctl", c.Group, "a visibility timeout is over 0 and up to %s (MaxTopicVisibility)", dc.MaxTopicVisibility)
		}
		g.VisibilityMs = *c.VisibilityMs
	}
	if c.MaxDeliveries != nil {
		g.MaxDeliveries = *c.MaxDeliveries
	}
	if c.DeadLetter != nil {
		if *c.DeadLetter == c.Topic {
			return dc.Errorf(dc.Invalid, "topic.ctl", c.Group, "a topic cannot be its own dead-letter topic: its messages would go round for ever")
		}
		g.DeadLetter, g.DeadLetterName = *c.DeadLetter, c.DeadLetterName
	}
	store(tx, groupKey(c.Topic, c.Group), g)
	return nil
}

func seekGroup(tx storage.Tx, c *command.TopicSeekGroup) error {
	st, g, err := group(tx, "topic.seek", c.Topic, c.Group)
	if err != nil {
		return err
	}
	old := g.Epoch
	switch at := c.To.GetAt().(type) {
	case *command.TopicPosition_Offset:
		g.Cursor = max(st.FirstOffset, min(at.Offset, st.NextOffset))
	case *command.TopicPosition_TimeMs:
		g.Cursor = Find(tx, c.Topic, st, at.TimeMs)
	case *command.TopicPosition_Earliest:
		g.Cursor = st.FirstOffset
	case *command.TopicPosition_Latest:
		g.Cursor = st.NextOffset
	default:
		return dc.Errorf(dc.Invalid, "topic.seek", c.Group, "want an offset, a time, earliest or latest")
	}
	st.LastEpoch++
	g.Epoch, g.InFlight, g.Returned = st.LastEpoch, 0, 0
	store(tx, key(rowState, c.Topic), st)
	store(tx, groupKey(c.Topic, c.Group), g)
	abandon(tx, c.Topic, old)
	tx.Emit(Ready{Topic: c.Topic, Group: c.Group})
	return nil
}

// take acknowledges what the reader is done with and leases what it asks for: returned messages first, oldest first, then new ones.
func take(tx storage.Tx, c *command.TopicTake) ([]byte, error) {
	const op = "topic.take"
	st, g, err := group(tx, op, c.Topic, c.Group)
	if err != nil {
		return nil, err
	}
	if c.Count > dc.MaxTopicTake || len(c.Ack) > dc.MaxTopicTake {
		return nil, dc.Errorf(dc.TooLarge, op, c.Group, "at most %d messages at a time (MaxTopicTake)", dc.MaxTopicTake)
	}
	for _, id := range c.Ack {
		if _, ok := leased(tx, c.Topic, g, id); ok {
			finish(tx, c.Topic, g, id.Offset)
			g.Acked++
		}
	}
	out := &command.TopicTaken{}
	expired := g.Expired
	for uint32(len(out.Deliveries)) < c.Count {
		offset, deliveries, ok := pick(tx, c.Topic, st, g)
		if !ok {
			break
		}
		g.LastLease++
		deliveries++
		store(tx, key(rowFlight, c.Topic, g.Epoch, offset), &command.TopicFlight{
			Lease: g.LastLease, Deliveries: deliveries, SinceMs: tx.Clock(), Reader: c.Reader,
		})
		tx.Emit(Leased{Topic: c.Topic, Group: c.Group, Epoch: g.Epoch, Offset: offset, Lease: g.LastLease, VisibilityMs: g.VisibilityMs})
		out.Deliveries = append(out.Deliveries, &command.TopicDelivery{
			Id: &command.TopicLeaseID{Offset: offset, Lease: g.LastLease}, Deliveries: deliveries,
		})
	}
	if len(out.Deliveries) > 0 || len(c.Ack) > 0 || g.Expired != expired {
		store(tx, groupKey(c.Topic, c.Group), g)
	}
	return encode(out), nil
}

// pick takes the next message to deliver out of the returned ones, or off the log.
func pick(tx storage.Tx, topic uint64, st *command.TopicState, g *command.TopicGroup) (offset uint64, deliveries uint32, ok bool) {
	prefix := key(rowReturned, topic, g.Epoch)
	if g.Returned > 0 {
		for k := range tx.Scan(storage.Span{Start: prefix, End: tuple.PrefixEnd(prefix), KeysOnly: true}) {
			if offset = last(k); offset < st.FirstOffset {
				forgo(tx, topic, g, offset)
				continue
			}
			tx.Delete(bytes.Clone(k))
			g.Returned--
			var f command.TopicFlight
			load(tx, key(rowFlight, topic, g.Epoch, offset), &f)
			return offset, f.Deliveries, true
		}
	}
	catchUp(st, g)
	if g.Cursor >= st.NextOffset || g.InFlight >= dc.MaxTopicInFlight {
		return 0, 0, false
	}
	offset = g.Cursor
	g.Cursor++
	g.InFlight++
	return offset, 0, true
}

// leased finds the delivery id, if it is still the message's latest and has not ended.
func leased(rd storage.Reader, topic uint64, g *command.TopicGroup, id *command.TopicLeaseID) (*command.TopicFlight, bool) {
	f := &command.TopicFlight{}
	ok := load(rd, key(rowFlight, topic, g.Epoch, id.GetOffset()), f)
	return f, ok && f.Lease != 0 && f.Lease == id.GetLease()
}

// finish forgets a message in flight.
func finish(tx storage.Tx, topic uint64, g *command.TopicGroup, offset uint64) {
	tx.Delete(key(rowFlight, topic, g.Epoch, offset))
	g.InFlight--
	tx.Emit(Settled{Topic: topic, Epoch: g.Epoch, Offset: offset})
}

func settle(tx storage.Tx, c *command.TopicSettle) error {
	const op = "topic.settle"
	_, g, err := group(tx, op, c.Topic, c.Group)
	if err != nil {
		return err
	}
	if len(c.Ids) > dc.MaxTopicTake {
		return dc.Errorf(dc.TooLarge, op, c.Group, "at most %d messages at a time (MaxTopicTake)", dc.MaxTopicTake)
	}
	if c.Epoch != 0 && c.Epoch != g.Epoch {
		return nil
	}
	byReader := c.Outcome == command.TopicOutcome_TOPIC_OUTCOME_ACK || c.Outcome == command.TopicOutcome_TOPIC_OUTCOME_NACK
	seen := map[uint64]bool{}
	for _, id := range c.Ids {
		if _, ok := leased(tx, c.Topic, g, id); byReader && (!ok || seen[id.Offset]) {
			return dc.Errorf(dc.Stale, op, c.Group, "message %d is not leased under %d any more: its visibility timeout has passed, or it was acknowledged before", id.GetOffset(), id.GetLease())
		}
		seen[id.Offset] = true
	}
	returned := g.Returned
	for _, id := range c.Ids {
		f, ok := leased(tx, c.Topic, g, id)
		if !ok {
			continue
		}
		if c.Outcome == command.TopicOutcome_TOPIC_OUTCOME_ACK {
			finish(tx, c.Topic, g, id.Offset)
			g.Acked++
			continue
		}
		giveBack(tx, c.Topic, g, id.Offset, f, c.Outcome == command.TopicOutcome_TOPIC_OUTCOME_UNREAD)
	}
	store(tx, groupKey(c.Topic, c.Group), g)
	if n := g.Returned - returned; n > 0 {
		tx.Emit(Ready{Topic: c.Topic, Group: c.Group, Count: n})
	}
	return nil
}

// giveBack makes a leased message available again, or buries it if it was delivered as often as is allowed.
func giveBack(tx storage.Tx, topic uint64, g *command.TopicGroup, offset uint64, f *command.TopicFlight, unread bool) {
	if unread {
		f.Deliveries--
	}
	if g.MaxDeliveries > 0 && f.Deliveries >= g.MaxDeliveries {
		bury(tx, topic, g, offset)
		finish(tx, topic, g, offset)
		g.Dead++
		return
	}
	f.Lease, f.Reader, f.SinceMs = 0, nil, tx.Clock()
	store(tx, key(rowFlight, topic, g.Epoch, offset), f)
	tx.Set(key(rowReturned, topic, g.Epoch, offset), nil)
	g.Returned++
	tx.Emit(Settled{Topic: topic, Epoch: g.Epoch, Offset: offset})
}

// bury copies a message to the dead-letter topic, if there is one that lives. In its own topic's log it stays in any case.
func bury(tx storage.Tx, topic uint64, g *command.TopicGroup, offset uint64) {
	if g.DeadLetter == 0 {
		return
	}
	st, err := State(tx, "topic.bury", g.DeadLetter)
	value, ok := message(tx, topic, offset)
	if err != nil || !ok {
		return
	}
	appendLines(tx, g.DeadLetter, st, append(value, '\n'))
	store(tx, key(rowState, g.DeadLetter), st)
	tx.Emit(Published{Topic: g.DeadLetter, Count: 1, End: st.NextByte, Ms: st.LastMs})
}
