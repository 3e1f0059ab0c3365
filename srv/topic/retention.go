package topic

import (
	"context"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/topic"
)

// retainEvery is how often a leader looks for messages that are to be removed. Between, it counts from what it has heard, and reads nothing.
const retainEvery = 5 * time.Second

// Set changes how much of a log is kept.
func (s *Service) Set(ctx context.Context, r *dcpb.TopicSetRequest) (*dcpb.TopicChangeReply, error) {
	if err := s.cfg.Retention(); err != nil {
		return nil, err
	}
	_, err := s.change(ctx, "topic.ctl", r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_SetTopic{SetTopic: &command.TopicSetTopic{Topic: r.Topic, RetentionMs: r.RetentionMs, RetentionBytes: r.RetentionBytes}},
	}, nil)
	return &dcpb.TopicChangeReply{}, err
}

// checkKept refuses to read what the log does not keep any more: whoever reads on would miss something without knowing.
func checkKept(op string, st *command.TopicState, at uint64) error {
	if at < st.FirstByte {
		return dc.Errorf(dc.Stale, op, "", "the log begins at byte %d now: what was before was removed by the topic's retention; open it again", st.FirstByte)
	}
	return nil
}

// A keep is a topic that does not keep all.
type keep struct {
	topic.Kept
	whole uint64 // the length of the log when it was last seen that the oldest batch must stay
}

// kept takes note of what a topic keeps.
func (t *term) kept(k topic.Kept) {
	if k.RetentionMs == 0 && k.RetentionBytes == 0 {
		delete(t.keeps, k.Topic)
		return
	}
	t.keeps[k.Topic] = &keep{Kept: k}
	select {
	case t.reset <- struct{}{}:
	default:
	}
}

// grown takes note that a log has.
func (t *term) grown(ev topic.Published) {
	k := t.keeps[ev.Topic]
	if k == nil {
		return
	}
	if k.NextByte = max(k.NextByte, ev.End); k.FirstMs == 0 {
		k.FirstMs = ev.Ms
	}
}

// retain removes messages that are too old, or too many, until the term is over.
func (t *term) retain(ctx context.Context) {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		for _, id := range t.overdue(t.replica.Clock()) {
			if err := t.trim(ctx, id); err != nil && ctx.Err() == nil {
				t.log.Warn("messages that are to be removed stay", "topic", id, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-t.reset:
		case <-ctx.Done():
			return
		}
	}
}

// overdue lists the topics that hold more than they are to keep.
func (t *term) overdue(nowMs int64) (ids []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, k := range t.keeps {
		if k.RetentionBytes > 0 && k.NextByte-k.FirstByte > k.RetentionBytes && k.NextByte != k.whole || k.RetentionMs > 0 && k.FirstMs > 0 && k.FirstMs+k.RetentionMs <= nowMs {
			ids = append(ids, id)
		}
	}
	return ids
}

// trim removes what a topic has too much of.
func (t *term) trim(ctx context.Context, id uint64) error {
	var cut uint64
	err := t.replica.Local(func(rd storage.Reader) (err error) {
		cut, err = topic.Cut(rd, id, t.replica.Clock())
		return err
	})
	if dc.KindOf(err) == dc.NotFound { // dropped
		t.mu.Lock()
		delete(t.keeps, id)
		t.mu.Unlock()
		return nil
	}
	if cut == 0 {
		t.mu.Lock()
		if k := t.keeps[id]; k != nil {
			k.whole = k.NextByte
		}
		t.mu.Unlock()
	}
	for err == nil && cut > 0 {
		ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
		var out command.TopicTrimmed
		err = t.do(ctx, t.replica.NewID(), &command.TopicCommand{Op: &command.TopicCommand_Trim{Trim: &command.TopicTrim{Topic: id, Byte: cut}}}, &out)
		cancel()
		if !out.More {
			break
		}
	}
	return err
}
