package topic

import (
	"slices"
	"sync"

	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/machine/topic"
)

// A hub lets streams wait for what is applied.
type hub struct {
	mu      sync.Mutex
	topics  map[uint64]*audience // only those somebody waits for
	waiters int
}

// An audience is who waits for one topic.
type audience struct {
	grown     chan struct{} // closed when the log grows or ends; made anew by who waits next
	followers int
	readers   map[string][]*waiter // by consumer group, longest waiting first
}

// A waiter is a reader that waits for a message.
type waiter struct {
	who  *dcpb.TopicMember
	wake chan struct{} // closed when there may be one
}

// observe wakes who waits for an event.
func (h *hub) observe(ev any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch ev := ev.(type) {
	case topic.Published:
		if a := h.topics[ev.Topic]; a != nil {
			a.grow()
			for group := range a.readers {
				h.wakeLocked(a, group, ev.Count)
			}
		}
	case topic.Ready:
		if a := h.topics[ev.Topic]; a != nil {
			h.wakeLocked(a, ev.Group, ev.Count)
		}
	case topic.Dropped:
		if a := h.topics[ev.Topic]; a != nil {
			h.wakeAllLocked(a)
		}
	case storage.Restored:
		for _, a := range h.topics {
			h.wakeAllLocked(a)
		}
	}
}

func (a *audience) grow() {
	close(a.grown)
	a.grown = make(chan struct{})
}

func (h *hub) wakeAllLocked(a *audience) {
	a.grow()
	for group := range a.readers {
		h.wakeLocked(a, group, 0)
	}
}

// wakeLocked wakes the n longest waiting readers of a group; all with n 0.
func (h *hub) wakeLocked(a *audience, group string, n uint64) {
	q := a.readers[group]
	if n == 0 || n > uint64(len(q)) {
		n = uint64(len(q))
	}
	for _, w := range q[:n] {
		close(w.wake)
	}
	if q = slices.Clone(q[n:]); len(q) == 0 {
		delete(a.readers, group)
	} else {
		a.readers[group] = q
	}
}

// audienceLocked finds or makes the audience of a topic.
func (h *hub) audienceLocked(id uint64) *audience {
	a := h.topics[id]
	if a == nil {
		a = &audience{grown: make(chan struct{}), readers: map[string][]*waiter{}}
		h.topics[id] = a
	}
	return a
}

func (h *hub) tidyLocked(id uint64) {
	if a := h.topics[id]; a != nil && a.followers == 0 && len(a.readers) == 0 {
		delete(h.topics, id)
	}
}

// enter admits one more stream unless there are limit already; leave ends it.
func (h *hub) enter(limit int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiters >= limit {
		return false
	}
	h.waiters++
	return true
}

func (h *hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiters--
}

// follow announces a follower of a log; unfollow must come after.
func (h *hub) follow(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.audienceLocked(id).followers++
}

func (h *hub) unfollow(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.topics[id].followers--
	h.tidyLocked(id)
}

// grown gives a channel that is closed when the log grows after this call. The caller follows the topic.
func (h *hub) grown(id uint64) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.topics[id].grown
}

// queue puts a reader at the end of a group's line.
func (h *hub) queue(id uint64, group string, w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.audienceLocked(id)
	a.readers[group] = append(a.readers[group], w)
}

// unqueue takes a reader out of the line, unless it was woken.
func (h *hub) unqueue(id uint64, group string, w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.topics[id]
	if a == nil {
		return
	}
	q := slices.DeleteFunc(slices.Clone(a.readers[group]), func(x *waiter) bool { return x == w })
	if len(q) == 0 {
		delete(a.readers, group)
	} else {
		a.readers[group] = q
	}
	h.tidyLocked(id)
}

// waiting lists the readers in a group's line.
func (h *hub) waiting(id uint64, group string) (who []*dcpb.TopicMember) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.topics[id]; a != nil {
		for _, w := range a.readers[group] {
			who = append(who, w.who)
		}
	}
	return who
}
