package topic

import (
	"bytes"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// Kept tells what of a topic is kept, and how much there is. It comes when that is set, and when messages were removed.
type Kept struct {
	Topic               uint64
	RetentionMs         int64  // 0: for ever
	RetentionBytes      uint64 // 0: any number
	FirstByte, NextByte uint64
	FirstMs             int64 // when the oldest message was published; 0: there is none
}

// trimRows bounds the batches that one command removes.
const trimRows = 64

func setTopic(tx storage.Tx, c *command.TopicSetTopic) error {
	const op = "topic.ctl"
	st, err := State(tx, op, c.Topic)
	if err != nil {
		return err
	}
	if c.RetentionMs != nil {
		if *c.RetentionMs < 0 || *c.RetentionMs > dc.MaxTopicRetention.Milliseconds() {
			return dc.Errorf(dc.Invalid, op, "", "messages are kept for up to %s (MaxTopicRetention), or 0: for ever", dc.MaxTopicRetention)
		}
		st.RetentionMs = *c.RetentionMs
	}
	if c.RetentionBytes != nil {
		st.RetentionBytes = *c.RetentionBytes
	}
	store(tx, key(rowState, c.Topic), st)
	tx.Emit(kept(tx, c.Topic, st))
	return nil
}

// kept describes a topic as it is now.
func kept(rd storage.Reader, topic uint64, st *command.TopicState) Kept {
	k := Kept{Topic: topic, RetentionMs: st.RetentionMs, RetentionBytes: st.RetentionBytes, FirstByte: st.FirstByte, NextByte: st.NextByte}
	for key, value := range rd.Scan(storage.Span{Start: key(rowBatch, topic, st.FirstByte), End: tuple.PrefixEnd(key(rowBatch, topic))}) {
		k.FirstMs = decodeBatch(key, value).timeMs
		break
	}
	return k
}

// trim removes the oldest batches.
func trim(tx storage.Tx, c *command.TopicTrim) ([]byte, error) {
	st, err := State(tx, "topic.trim", c.Topic)
	if err != nil {
		return nil, err
	}
	out := &command.TopicTrimmed{}
	removed := 0
	for k, value := range tx.Scan(storage.Span{Start: key(rowBatch, c.Topic, st.FirstByte), End: tuple.PrefixEnd(key(rowBatch, c.Topic))}) {
		b := decodeBatch(k, value)
		if b.end() > c.Byte {
			break
		}
		if removed == trimRows {
			out.More = true
			break
		}
		st.FirstByte, st.FirstOffset = b.end(), b.first+b.count
		tx.Delete(bytes.Clone(k))
		removed++
	}
	if removed == 0 {
		return encode(out), nil
	}
	for k := range tx.Scan(storage.Span{Start: key(rowOffset, c.Topic), End: key(rowOffset, c.Topic, st.FirstOffset), KeysOnly: true}) {
		tx.Delete(bytes.Clone(k))
	}
	store(tx, key(rowState, c.Topic), st)
	tx.Emit(kept(tx, c.Topic, st))
	return encode(out), nil
}

// Keeps yields what is kept of each topic that does not keep all.
func Keeps(rd storage.Reader, yield func(Kept) bool) {
	for k, v := range rd.Scan(storage.Span{Start: []byte{rowState}, End: []byte{rowState + 1}}) {
		st := &command.TopicState{}
		decode(k, v, st)
		if (st.RetentionMs > 0 || st.RetentionBytes > 0) && !st.Dropped && !yield(kept(rd, last(k), st)) {
			return
		}
	}
}

// Cut gives the byte up to which a topic's log is older or longer than what it keeps at a time; zero if it is not. [command.TopicTrim] removes the
// batches before it.
func Cut(rd storage.Reader, topic uint64, nowMs int64) (uint64, error) {
	st, err := State(rd, "topic.trim", topic)
	if err != nil {
		return 0, err
	}
	cut := uint64(0)
	if st.RetentionBytes > 0 && st.NextByte-st.FirstByte > st.RetentionBytes {
		cut = st.NextByte - st.RetentionBytes
	}
	if st.RetentionMs > 0 {
		at, _ := find(rd, topic, st, nowMs-st.RetentionMs)
		cut = max(cut, at)
	}
	whole := false
	scan(rd, topic, st.FirstByte, func(b batch) bool { whole = b.end() <= cut; return false })
	if !whole {
		cut = 0
	}
	return cut, nil
}

// forgo drops a returned message that the log has no longer.
func forgo(tx storage.Tx, topic uint64, g *command.TopicGroup, offset uint64) {
	tx.Delete(key(rowReturned, topic, g.Epoch, offset))
	g.Returned--
	g.Expired++
	finish(tx, topic, g, offset)
}

// catchUp has a group go on with the oldest message that is kept.
func catchUp(st *command.TopicState, g *command.TopicGroup) {
	if g.Cursor < st.FirstOffset {
		g.Expired += st.FirstOffset - g.Cursor
		g.Cursor = st.FirstOffset
	}
}
