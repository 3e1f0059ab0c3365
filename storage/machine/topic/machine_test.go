package topic_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/topic"
	"missingos/storage/storagetest"
)

const (
	id   = 7 // a topic
	dead = 8 // its dead-letter topic
)

// apply runs one command; op is one of the TopicCommand_ wrappers.
func apply(run *storagetest.Run, c *command.TopicCommand) ([]byte, error) {
	c.Version = topic.Version
	body, err := proto.Marshal(c)
	if err != nil {
		panic(err)
	}
	return run.Apply(body)
}

func publish(run *storagetest.Run, to uint64, lines string) (*command.TopicPublished, error) {
	out, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_Publish{Publish: &command.TopicPublish{Topic: to, Lines: []byte(lines)}}})
	p := &command.TopicPublished{}
	if err == nil {
		err = proto.Unmarshal(out, p)
	}
	return p, err
}

func makeGroup(run *storagetest.Run, name string) error {
	_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_CreateGroup{CreateGroup: &command.TopicCreateGroup{Topic: id, Group: name}}})
	return err
}

func take(run *storagetest.Run, name string, n int, ack ...*command.TopicLeaseID) ([]*command.TopicDelivery, error) {
	out, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_Take{Take: &command.TopicTake{Topic: id, Group: name, Count: uint32(n), Ack: ack}}})
	t := &command.TopicTaken{}
	if err == nil {
		err = proto.Unmarshal(out, t)
	}
	return t.Deliveries, err
}

func settle(run *storagetest.Run, name string, outcome command.TopicOutcome, ids ...*command.TopicLeaseID) error {
	_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_Settle{Settle: &command.TopicSettle{Topic: id, Group: name, Ids: ids, Outcome: outcome}}})
	return err
}

func seek(run *storagetest.Run, name string, to *command.TopicPosition) error {
	_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_SeekGroup{SeekGroup: &command.TopicSeekGroup{Topic: id, Group: name, To: to}}})
	return err
}

func sweepAll(t testing.TB, run *storagetest.Run) {
	for {
		var all []topic.Sweep
		_ = run.View(func(rd storage.Reader) error { all = topic.Sweeps(rd, 10); return nil })
		if len(all) == 0 {
			return
		}
		for _, s := range all {
			if _, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_Sweep{Sweep: &command.TopicSweep{Topic: s.Topic, Epoch: s.Epoch}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func logOf(run *storagetest.Run, of uint64) (text string) {
	_ = run.View(func(rd storage.Reader) error { text = string(topic.Bytes(rd, of, 0, 1<<30)); return nil })
	return text
}

func TestLogIsReadByByteByOffsetAndByTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		run := storagetest.New(topic.New())
		var log bytes.Buffer
		var messages []string
		var times []int64
		for range rapid.IntRange(1, 30).Draw(t, "publishes") {
			run.SetClock(run.Clock() + int64(rapid.IntRange(0, 3).Draw(t, "ms")))
			var lines bytes.Buffer
			for range rapid.IntRange(1, 5).Draw(t, "messages") {
				n := rapid.SampledFrom([]int{0, 1, 10, 5000, 40_000}).Draw(t, "bytes")
				m := strings.Repeat(string(rune('a'+len(messages)%26)), n)
				messages, times = append(messages, m), append(times, run.Clock())
				lines.WriteString(m + "\n")
			}
			p, err := publish(run, id, lines.String())
			log.Write(lines.Bytes())
			if err != nil || p.End != uint64(log.Len()) || p.First+p.Count != uint64(len(messages)) {
				t.Fatalf("publish: %v %v", p, err)
			}
		}
		at := rapid.IntRange(0, log.Len()).Draw(t, "at")
		n := rapid.IntRange(1, 100_000).Draw(t, "max")
		offset := rapid.IntRange(0, len(messages)).Draw(t, "offset")
		when := run.Clock() - int64(rapid.IntRange(-2, 60).Draw(t, "ago"))
		_ = run.View(func(rd storage.Reader) error {
			if got, want := topic.Bytes(rd, id, uint64(at), n), log.Bytes()[at:min(at+n, log.Len())]; !bytes.Equal(got, want) {
				t.Fatalf("bytes %d+%d: got %d, want %d", at, n, len(got), len(want))
			}
			i := offset
			topic.Messages(rd, id, uint64(offset), func(m topic.Message) bool {
				if m.Offset != uint64(i) || string(m.Value) != messages[i] || m.TimeMs != times[i] {
					t.Fatalf("message %d: got offset %d, %d bytes, time %d", i, m.Offset, len(m.Value), m.TimeMs)
				}
				i++
				return true
			})
			if i != len(messages) {
				t.Fatalf("from offset %d: got up to %d of %d", offset, i, len(messages))
			}
			st, err := topic.State(rd, "", id)
			if err != nil {
				return err
			}
			found := topic.Find(rd, id, st, when)
			want, _ := slices.BinarySearchFunc(times, when, func(a, b int64) int { return int(a - b) })
			if found != uint64(want) {
				t.Fatalf("time %d: got %d, want %d", when, found, want)
			}
			return nil
		})
	})
}

// groupModel is a consumer group as a person would write it down.
type groupModel struct {
	cursor     int
	leased     map[int]uint64 // by offset
	returned   map[int]bool
	deliveries map[int]uint32
	lastLease  uint64
	acked      uint64
	buried     []int
}

func (m *groupModel) take() (int, bool) {
	offsets := []int{}
	for o := range m.returned {
		offsets = append(offsets, o)
	}
	if len(offsets) == 0 {
		return 0, false
	}
	return slices.Min(offsets), true
}

func TestConsumerGroupAgainstAModel(t *testing.T) {
	const maxDeliveries = 3
	rapid.Check(t, func(t *rapid.T) {
		run := storagetest.New(topic.New())
		if err := makeGroup(run, "g"); err != nil {
			t.Fatal(err)
		}
		limit, letter := uint32(maxDeliveries), uint64(dead)
		_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_SetGroup{SetGroup: &command.TopicSetGroup{
			Topic: id, Group: "g", MaxDeliveries: &limit, DeadLetter: &letter, DeadLetterName: "dead",
		}}})
		if err != nil {
			t.Fatal(err)
		}
		fresh := func(cursor int, old *groupModel) *groupModel {
			m := &groupModel{cursor: cursor, leased: map[int]uint64{}, returned: map[int]bool{}, deliveries: map[int]uint32{}}
			if old != nil {
				m.lastLease, m.acked, m.buried = old.lastLease, old.acked, old.buried
			}
			return m
		}
		m := fresh(0, nil)
		published := 0
		pickLease := func() *command.TopicLeaseID {
			offsets := []int{}
			for o := range m.leased {
				offsets = append(offsets, o)
			}
			if len(offsets) == 0 || rapid.IntRange(0, 9).Draw(t, "wrong") == 0 {
				return &command.TopicLeaseID{Offset: uint64(rapid.IntRange(0, published).Draw(t, "o")), Lease: 1 << 40}
			}
			slices.Sort(offsets)
			o := rapid.SampledFrom(offsets).Draw(t, "offset")
			return &command.TopicLeaseID{Offset: uint64(o), Lease: m.leased[o]}
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 9).Draw(t, "op"); op {
			case 0, 1:
				n := rapid.IntRange(1, 4).Draw(t, "n")
				lines := ""
				for i := range n {
					lines += fmt.Sprintf("message %d\n", published+i)
				}
				published += n
				if _, err := publish(run, id, lines); err != nil {
					t.Fatal(err)
				}
			case 2, 3, 4:
				got, err := take(run, "g", rapid.IntRange(1, 3).Draw(t, "count"))
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range got {
					o, again := m.take()
					if again {
						delete(m.returned, o)
					} else {
						o = m.cursor
						m.cursor++
					}
					m.lastLease++
					m.deliveries[o]++
					m.leased[o] = m.lastLease
					if int(d.Id.Offset) != o || d.Id.Lease != m.lastLease || d.Deliveries != m.deliveries[o] {
						t.Fatalf("took %v, want offset %d lease %d delivery %d", d, o, m.lastLease, m.deliveries[o])
					}
				}
				if _, again := m.take(); len(got) == 0 && (again || m.cursor < published) {
					t.Fatal("nothing was given though there is something")
				}
			case 5, 6, 7, 8:
				outcome := command.TopicOutcome(op - 4)
				lease := pickLease()
				o := int(lease.Offset)
				held := m.leased[o] == lease.Lease && m.leased[o] != 0
				err := settle(run, "g", outcome, lease)
				if byReader := op <= 6; byReader && !held {
					if !errors.Is(err, dc.Stale) {
						t.Fatalf("%v of a lost lease: %v", outcome, err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if !held {
					continue
				}
				delete(m.leased, o)
				if op == 5 {
					m.acked++
					continue
				}
				if outcome == command.TopicOutcome_TOPIC_OUTCOME_UNREAD {
					m.deliveries[o]--
				}
				if m.deliveries[o] >= maxDeliveries {
					m.buried = append(m.buried, o)
				} else {
					m.returned[o] = true
				}
			case 9:
				to := rapid.IntRange(0, published+2).Draw(t, "to")
				if err := seek(run, "g", &command.TopicPosition{At: &command.TopicPosition_Offset{Offset: uint64(to)}}); err != nil {
					t.Fatal(err)
				}
				m = fresh(min(to, published), m)
				sweepAll(&testing.T{}, run)
			}
			_ = run.View(func(rd storage.Reader) error {
				g, err := topic.Group(rd, "", id, "g")
				if err != nil {
					t.Fatal(err)
				}
				got := []uint64{g.Cursor, g.InFlight, g.Returned, g.Acked, g.Dead, g.Lag}
				flying := len(m.leased) + len(m.returned)
				want := []uint64{uint64(m.cursor), uint64(flying), uint64(len(m.returned)), m.acked, uint64(len(m.buried)), uint64(published - m.cursor + flying)}
				if d := cmp.Diff(got, want); d != "" {
					t.Fatalf("cursor, in flight, returned, acked, dead, lag: %s", d)
				}
				return nil
			})
		}
		want := ""
		for _, o := range m.buried {
			want += fmt.Sprintf("message %d\n", o)
		}
		if got := logOf(run, dead); got != want {
			t.Fatalf("dead letters %q, want %q", got, want)
		}
	})
}

func TestDropsAreSweptAndRemembered(t *testing.T) {
	run := storagetest.New(topic.New())
	for i := range 400 {
		if _, err := publish(run, id, fmt.Sprintf("message %d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []string{"a", "b"} {
		if err := makeGroup(run, g); err != nil {
			t.Fatal(err)
		}
		if _, err := take(run, g, 200); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeGroup(run, "a"); !errors.Is(err, dc.Exists) {
		t.Errorf("made twice: %v", err)
	}
	_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_DropGroup{DropGroup: &command.TopicDropGroup{Topic: id, Group: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take(run, "a", 1); !errors.Is(err, dc.NotFound) {
		t.Errorf("take of a dropped group: %v", err)
	}
	dropTopic := func(onlyIfEmpty bool) error {
		_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_Drop{Drop: &command.TopicDrop{Topic: id, OnlyIfEmpty: onlyIfEmpty}}})
		return err
	}
	if err := dropTopic(true); !errors.Is(err, dc.NotEmpty) {
		t.Errorf("dropped though not empty: %v", err)
	}
	if err := dropTopic(false); err != nil {
		t.Fatal(err)
	}
	sweepAll(t, run)
	if rows := strings.Count(run.Dump(), "\n"); rows != 1 {
		t.Errorf("%d rows left:\n%.2000s", rows, run.Dump())
	}
	if _, err := publish(run, id, "late\n"); !errors.Is(err, dc.NotFound) {
		t.Errorf("publish to a dropped topic: %v", err)
	}
}

func TestWrongMessagesAreRefused(t *testing.T) {
	run := storagetest.New(topic.New())
	for lines, kind := range map[string]dc.Kind{
		"": dc.Invalid, "no newline": dc.Invalid, strings.Repeat("x", dc.MaxValueBytes+1) + "\n": dc.TooLarge,
	} {
		if _, err := publish(run, id, lines); !errors.Is(err, kind) {
			t.Errorf("%.20q: %v", lines, err)
		}
	}
	if _, err := publish(run, id, strings.Repeat("x", dc.MaxValueBytes)+"\n"); err != nil {
		t.Error(err)
	}
}
