package topic_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/srv/topic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 6

// A world is one topic group with its service, and a client on node 1. It is its own directory of nodes and of names.
type world struct {
	*rpc.Local
	*client.Topics
	rep    *replica.Memory
	client *client.Client

	mu      sync.Mutex
	names   map[string]client.Descriptor
	removed []uint64
}

func newWorld(t testing.TB) *world {
	w := &world{Local: rpc.NewLocal(), names: map[string]client.Descriptor{}}
	kind := topic.New(topic.Config{Descriptors: w}).Kind()
	kind.Register(w.Local)
	w.rep = replica.NewMemory(group, kind)
	t.Cleanup(w.rep.Close)
	w.client = client.New(client.Config{Node: 1, Nodes: w, Directory: directory{}})
	w.Topics = client.NewTopics(w.client, w)
	return w
}

func (w *world) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return w.Local, nil }

type directory struct{}

func (directory) Group(string) (dc.GroupID, error) { return group, nil }
func (directory) Replicas(dc.GroupID) []dc.NodeID  { return []dc.NodeID{1} }

func (w *world) CreateDescriptor(_ context.Context, kind, name string, mode uint32) (client.Descriptor, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := client.Descriptor{Kind: kind, Name: name, ID: uint64(len(w.names)+len(w.removed)) + 1, Group: group, State: "ready", Mode: mode}
	w.names[name] = d
	return d, nil
}

func (w *world) Descriptor(_ context.Context, _, name string) (client.Descriptor, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d, ok := w.names[name]; ok {
		return d, nil
	}
	return client.Descriptor{}, dc.Errorf(dc.NotFound, "meta", name, "")
}
func (w *world) Forget(_, _ string) {}
func (w *world) ListDescriptors(context.Context, string, string, int) ([]client.Descriptor, error) {
	return nil, nil
}

func (w *world) MarkDropping(_ context.Context, _ string, id uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, d := range w.names {
		if d.ID == id {
			delete(w.names, name)
			w.removed = append(w.removed, id)
		}
	}
	return nil
}

func (w *world) RemoveDescriptor(ctx context.Context, kind string, id uint64) error {
	return w.MarkDropping(ctx, kind, id)
}

func (w *world) topic(t testing.TB, name string) client.Descriptor {
	t.Helper()
	d, err := w.Create(t.Context(), name, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) publish(t testing.TB, d client.Descriptor, lines string) {
	t.Helper()
	if _, _, err := w.Publish(t.Context(), d, []byte(lines)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) group(t testing.TB, d client.Descriptor, name string) {
	t.Helper()
	if err := w.CreateGroup(t.Context(), d, name); err != nil {
		t.Fatal(err)
	}
}

// next waits for a message and takes it.
func (w *world) next(t testing.TB, d client.Descriptor, reader uint64, ack ...client.TopicLease) client.TopicDelivery {
	t.Helper()
	for {
		got, err := w.Take(t.Context(), d, "g", reader, 1, ack...)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > 0 {
			return got[0]
		}
		if err := w.Wait(t.Context(), d, "g", reader); err != nil {
			t.Fatal(err)
		}
		ack = nil
	}
}

func TestARetriedPublishAppendsOnce(t *testing.T) {
	w := newWorld(t)
	d := w.topic(t, "t")
	if _, err := w.Stat(t.Context(), d); err != nil { // waits until the term has begun, which what follows does not
		t.Fatal(err)
	}
	c := dcpb.NewTopicClient(w.Local)
	h := &dcpb.Header{Group: uint64(group), Principal: &dcpb.Principal{Node: 1}, Client: 9, Seq: 1, Done: 1, IssuedMs: w.rep.Clock()}
	for range 3 {
		r, err := c.Publish(t.Context(), &dcpb.TopicPublishRequest{Header: h, Topic: d.ID, Lines: []byte("a\nb\n")})
		if err != nil || r.First != 0 || r.Count != 2 || r.End != 4 {
			t.Fatalf("%v %v", r, err)
		}
	}
	if st, err := w.Stat(t.Context(), d); err != nil || st.Next != 2 || st.NextByte != 4 {
		t.Errorf("%+v %v", st, err)
	}
	w.publish(t, d, strings.Repeat("x", 1000)+"\n")
	if b, err := w.Read(t.Context(), d, 2, 5); err != nil || string(b) != "b\nxxx" {
		t.Errorf("read %q %v", b, err)
	}
	if m, err := w.Fetch(t.Context(), d, 1, 10); err != nil || len(m) != 2 || string(m[0].Value) != "b" || m[1].Offset != 2 {
		t.Errorf("fetch %v %v", m, err)
	}
}

func TestFollowersHearEverythingOnceOverLeaderChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.topic(t, "t")
		w.publish(t, d, "before\n")
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		heard := ""
		done := make(chan error, 1)
		go func() {
			done <- w.Follow(ctx, d, 7, func(b []byte) error {
				mu.Lock()
				defer mu.Unlock()
				heard += string(b)
				return nil
			})
		}()
		want := ""
		for i := range 30 {
			if i%10 == 5 {
				w.rep.Resign()
				time.Sleep(time.Second)
				w.rep.Lead()
			}
			line := fmt.Sprintf("line %d\n", i)
			want += line
			w.publish(t, d, line)
			time.Sleep(20 * time.Second)
		}
		mu.Lock()
		if heard != want {
			t.Errorf("heard %q", heard)
		}
		mu.Unlock()
		cancel()
		if err := <-done; !errors.Is(err, dc.Interrupted) {
			t.Error(err)
		}
		w.rep.Close()
	})
}

func TestALeaseLastsItsVisibilityTimeoutAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.topic(t, "t")
		w.group(t, d, "g")
		w.publish(t, d, "m0\nm1\n")
		start := time.Now()
		first, second := w.next(t, d, 1), w.next(t, d, 2)
		if string(first.Message.Value) != "m0" || string(second.Message.Value) != "m1" {
			t.Fatalf("%+v %+v", first, second)
		}
		time.Sleep(10 * time.Second)
		if err := w.Settle(t.Context(), d, "g", client.TopicAck, second.ID); err != nil {
			t.Fatal(err)
		}
		again := w.next(t, d, 3)
		if took := time.Since(start); again.ID.Offset != 0 || again.Deliveries != 2 || took < dc.TopicVisibility || took > dc.TopicVisibility+time.Second {
			t.Errorf("%+v after %v", again, took)
		}
		if err := w.Settle(t.Context(), d, "g", client.TopicAck, first.ID); !errors.Is(err, dc.Stale) {
			t.Errorf("the lost lease acknowledged: %v", err)
		}
		// A change of leader gives the full time again.
		time.Sleep(20 * time.Second)
		w.rep.Resign()
		w.rep.Lead()
		over := time.Now()
		last := w.next(t, d, 4)
		if took := time.Since(over); took < dc.TopicVisibility || last.Deliveries != 3 {
			t.Errorf("%+v after %v", last, took)
		}
		if err := w.Settle(t.Context(), d, "g", client.TopicAck, last.ID); err != nil {
			t.Error(err)
		}
		if g, err := w.Group(t.Context(), d, "g"); err != nil || g.Lag != 0 || g.Acked != 2 || g.Offset != 2 {
			t.Errorf("%+v %v", g, err)
		}
		w.rep.Close()
	})
}

func (w *world) groupStat(t testing.TB, d client.Descriptor) client.TopicGroup {
	t.Helper()
	g, err := w.Topics.Group(t.Context(), d, "g")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestManyReadersGetEveryMessageOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.topic(t, "t")
		w.group(t, d, "g")
		const readers, messages = 20, 300
		var mu sync.Mutex
		got := map[string]int{}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for r := range uint64(readers) {
			wg.Go(func() {
				var ack []client.TopicLease
				for {
					ms, err := w.Take(ctx, d, "g", r+1, 1, ack...)
					if err != nil {
						return
					}
					ack = nil
					for _, m := range ms {
						mu.Lock()
						got[string(m.Message.Value)]++
						mu.Unlock()
						ack = append(ack, m.ID)
						time.Sleep(time.Millisecond)
					}
					if len(ms) == 0 && w.Wait(ctx, d, "g", r+1) != nil {
						return
					}
				}
			})
		}
		start := time.Now()
		for i := range messages {
			w.publish(t, d, fmt.Sprintf("m%d\n", i))
			if i%10 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		for w.groupStat(t, d).Lag > 0 && time.Since(start) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		mu.Lock()
		for m, n := range got {
			if n != 1 {
				t.Errorf("%s was delivered %d times", m, n)
			}
		}
		if len(got) != messages {
			t.Errorf("%d of %d messages", len(got), messages)
		}
		mu.Unlock()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v: readers slept over messages", took)
		}
		if m, err := w.Members(t.Context(), d, "g"); err != nil || len(m) != readers || !m[0].Waiting {
			t.Errorf("%d members, %v", len(m), err)
		}
		cancel()
		wg.Wait()
		w.rep.Close()
	})
}

// A reader that is woken for a message and dies must not make the others miss it.
func TestAMessageIsNotForgottenWithAReaderThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.topic(t, "t")
		w.group(t, d, "g")
		woken := make(chan error)
		go func() { woken <- w.Wait(t.Context(), d, "g", 1) }() // and then does nothing
		synctest.Wait()
		start := time.Now()
		got := make(chan client.TopicDelivery)
		go func() { got <- w.next(t, d, 2) }()
		synctest.Wait()
		w.publish(t, d, "m\n")
		if err := <-woken; err != nil {
			t.Error(err)
		}
		<-got
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		w.rep.Close()
	})
}

func TestDroppedTopicsAreSweptAndTheirNamesFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.topic(t, "t")
		w.group(t, d, "g")
		for i := range 600 {
			w.publish(t, d, fmt.Sprintf("m%d\n", i))
		}
		waited := make(chan error)
		go func() { waited <- w.Wait(t.Context(), d, "other", 1) }()
		if err := <-waited; !errors.Is(err, dc.NotFound) {
			t.Errorf("waited for no group: %v", err)
		}
		followed := make(chan error)
		go func() { followed <- w.Follow(t.Context(), d, 0, func([]byte) error { return nil }) }()
		synctest.Wait()
		if err := w.Drop(t.Context(), d, true); !errors.Is(err, dc.NotEmpty) {
			t.Error(err)
		}
		if err := w.Drop(t.Context(), d, false); err != nil {
			t.Error(err)
		}
		if err := <-followed; !errors.Is(err, dc.NotFound) {
			t.Errorf("follower of a dropped topic: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := w.Topic(t.Context(), "t"); !errors.Is(err, dc.NotFound) {
			t.Error(err)
		}
		if _, _, err := w.Publish(t.Context(), d, []byte("x\n")); !errors.Is(err, dc.NotFound) {
			t.Error(err)
		}
		if e := w.topic(t, "t"); e.ID == d.ID {
			t.Error("an id was used again")
		}
		w.rep.Close()
	})
}

func TestBadRequestsAreRefused(t *testing.T) {
	w := newWorld(t)
	d := w.topic(t, "t")
	if _, _, err := w.Publish(t.Context(), d, []byte("no newline")); !errors.Is(err, dc.Invalid) {
		t.Error(err)
	}
	if _, _, err := w.Publish(t.Context(), d, []byte(strings.Repeat("x", dc.MaxValueBytes+1)+"\n")); !errors.Is(err, dc.TooLarge) || !strings.Contains(err.Error(), "MaxValueBytes") {
		t.Error(err)
	}
	for _, name := range []string{"", ".", ".dc", "a/b", strings.Repeat("x", 256)} {
		if err := w.CreateGroup(t.Context(), d, name); err == nil {
			t.Errorf("group %q was made", name)
		}
	}
	if err := w.Settle(t.Context(), d, "g", client.TopicAck, client.TopicLease{}); !errors.Is(err, dc.NotFound) {
		t.Error(err)
	}
}

// A leader removes what is older than a topic keeps, and so does the next one. Nothing is read while nothing is due.
func TestOldMessagesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.rep.Close()
		d := w.topic(t, "t")
		w.publish(t, d, "old\n")
		time.Sleep(time.Minute)
		w.publish(t, d, "new\n")
		age := 2 * time.Minute
		if err := w.SetRetention(t.Context(), d, client.TopicRetention{Age: &age}); err != nil {
			t.Fatal(err)
		}
		first := func() uint64 {
			st, err := w.Stat(t.Context(), d)
			if err != nil || st.Retention != age || st.Next < 2 {
				t.Fatalf("%+v %v", st, err)
			}
			return st.First
		}
		time.Sleep(50 * time.Second)
		if got := first(); got != 0 {
			t.Errorf("message 0 went early: the log begins with %d", got)
		}
		time.Sleep(20 * time.Second)
		if got := first(); got != 1 {
			t.Errorf("message 0 stays: the log begins with %d", got)
		}
		w.rep.Resign()
		w.rep.Lead()
		w.publish(t, d, "newer\n")
		time.Sleep(time.Minute)
		if got := first(); got != 2 {
			t.Errorf("after a change of leader the log begins with %d, want 2", got)
		}
		if _, err := w.Read(t.Context(), d, 0, 10); !errors.Is(err, dc.Stale) {
			t.Errorf("what was removed was read: %v", err)
		}
		if b, err := w.Read(t.Context(), d, 8, 10); err != nil || string(b) != "newer\n" {
			t.Errorf("read %q %v", b, err)
		}
	})
}
