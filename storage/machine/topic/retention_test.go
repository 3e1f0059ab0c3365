package topic_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/topic"
	"missingos/storage/storagetest"
)

func setTopic(run *storagetest.Run, ms int64, bytes uint64) error {
	_, err := apply(run, &command.TopicCommand{Op: &command.TopicCommand_SetTopic{SetTopic: &command.TopicSetTopic{Topic: id, RetentionMs: &ms, RetentionBytes: &bytes}}})
	return err
}

// trimAll removes what is too much, as a leader does.
func trimAll(t testing.TB, run *storagetest.Run) {
	t.Helper()
	var cut uint64
	err := run.View(func(rd storage.Reader) (err error) {
		cut, err = topic.Cut(rd, id, run.Clock())
		return err
	})
	for more := cut > 0; more && err == nil; {
		var out []byte
		out, err = apply(run, &command.TopicCommand{Op: &command.TopicCommand_Trim{Trim: &command.TopicTrim{Topic: id, Byte: cut}}})
		r := &command.TopicTrimmed{}
		if err == nil {
			err = proto.Unmarshal(out, r)
		}
		more = r.More
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A log from which the oldest go keeps its bytes and offsets, by byte, by offset and by time.
func TestRetentionAgainstAModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		run := storagetest.New(topic.New())
		type write struct {
			lines string
			at    int64
		}
		var log []write // all that was ever published
		text := func(from int) string {
			var b strings.Builder
			for _, w := range log[from:] {
				b.WriteString(w.lines)
			}
			return b.String()
		}
		gone := 0 // writes
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			switch rapid.IntRange(0, 4).Draw(rt, "op") {
			case 0, 1, 2:
				n := rapid.IntRange(1, 3).Draw(rt, "n")
				lines := strings.Repeat(strings.Repeat("x", rapid.SampledFrom([]int{0, 9, 3000}).Draw(rt, "size"))+"\n", n)
				if _, err := publish(run, id, lines); err != nil {
					rt.Fatal(err)
				}
				log = append(log, write{lines, run.Clock()})
			case 3:
				run.SetClock(run.Clock() + rapid.Int64Range(0, 5000).Draw(rt, "ms"))
			case 4:
				ms, bytes := rapid.SampledFrom([]int64{0, 1000, 4000}).Draw(rt, "age"), rapid.SampledFrom([]uint64{0, 1, 5000}).Draw(rt, "bytes")
				if err := setTopic(run, ms, bytes); err != nil {
					rt.Fatal(err)
				}
				trimAll(t, run)
				for ; gone < len(log); gone++ {
					kept := uint64(len(text(gone)))
					first := uint64(len(log[gone].lines))
					if (ms == 0 || log[gone].at >= run.Clock()-ms) && (bytes == 0 || kept-first < bytes) {
						break
					}
				}
			}
			_ = run.View(func(rd storage.Reader) error {
				st, err := topic.State(rd, "", id)
				if err != nil {
					rt.Fatal(err)
				}
				all, want := text(0), text(gone)
				begin := len(all) - len(want)
				if int(st.FirstByte) != begin || int(st.NextByte) != len(all) || int(st.FirstOffset) != strings.Count(all[:begin], "\n") {
					rt.Fatalf("begins at byte %d and message %d, ends at %d; want %d, %d, %d", st.FirstByte, st.FirstOffset, st.NextByte, begin, strings.Count(all[:begin], "\n"), len(all))
				}
				if got := string(topic.Bytes(rd, id, st.FirstByte, len(all)+1)); got != want {
					rt.Fatalf("the log is %q, want %q", got, want)
				}
				from := uint64(rapid.IntRange(0, int(st.NextOffset)).Draw(rt, "from"))
				next := max(from, st.FirstOffset)
				topic.Messages(rd, id, from, func(m topic.Message) bool {
					if m.Offset != next {
						rt.Fatalf("message %d comes where %d is due", m.Offset, next)
					}
					next++
					return true
				})
				if next != st.NextOffset {
					rt.Fatalf("messages end at %d, want %d", next, st.NextOffset)
				}
				at := run.Clock() - rapid.Int64Range(0, 6000).Draw(rt, "ago")
				offset := st.FirstOffset
				for _, w := range log[gone:] {
					if w.at >= at {
						break
					}
					offset += uint64(strings.Count(w.lines, "\n"))
				}
				if got := topic.Find(rd, id, st, at); got != offset {
					rt.Fatalf("found %d for a time, want %d", got, offset)
				}
				return nil
			})
		}
	})
}

// A group whose messages are removed goes on with the oldest that is kept, and counts those it never acknowledged.
func TestAGroupMissesWhatWasRemoved(t *testing.T) {
	run := storagetest.New(topic.New())
	if err := makeGroup(run, "g"); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if _, err := publish(run, id, fmt.Sprintf("m%d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := take(run, "g", 2) // 0 and 1
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if err := settle(run, "g", command.TopicOutcome_TOPIC_OUTCOME_NACK, got[0].Id); err != nil {
		t.Fatal(err)
	}
	if err := setTopic(run, 0, 3); err != nil { // the last one
		t.Fatal(err)
	}
	trimAll(t, run)
	if err := settle(run, "g", command.TopicOutcome_TOPIC_OUTCOME_ACK, got[1].Id); err != nil {
		t.Errorf("what was taken before may be acknowledged: %v", err)
	}
	got, err = take(run, "g", 5)
	if err != nil || len(got) != 1 || got[0].Id.Offset != 3 {
		t.Errorf("took %v %v, want message 3", got, err)
	}
	_ = run.View(func(rd storage.Reader) error {
		g, err := topic.Group(rd, "", id, "g")
		if err != nil || g.Expired != 2 || g.Acked != 1 || g.InFlight != 1 || g.Returned != 0 || g.Lag != 1 {
			t.Errorf("%v %v", g, err)
		}
		return nil
	})
	if err := setTopic(run, -1, 0); !errors.Is(err, dc.Invalid) {
		t.Errorf("a negative age: %v", err)
	}
}
