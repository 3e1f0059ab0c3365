package topicfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// control is the hidden directory of a topic.
func (t topic) control() synth.Dir {
	k := t.Key() + "/" + controlName
	children := []synth.Named{
		{Name: "ctl", Node: t.ctl(k + "/ctl")},
		{Name: "produce", Node: t.produce(k + "/produce")},
		{Name: "fetch", Node: t.fetch(k + "/fetch")},
	}
	children = append(children, synth.StatusFiles("stat", k+"/stat", t.stat)...)
	return synth.Static(k, children...)
}

func (t topic) stat(ctx context.Context) ([]synth.Pair, error) {
	st, err := t.store.Stat(ctx, t.d)
	if err != nil {
		return nil, err
	}
	return []synth.Pair{
		{Key: "topic", Value: t.d.Name},
		{Key: "id", Value: t.d.ID},
		{Key: "partitions", Value: 1},
		{Key: "messages", Value: st.Next - st.First},
		{Key: "bytes", Value: st.NextByte - st.FirstByte},
		{Key: "first", Value: st.First},
		{Key: "next", Value: st.Next},
		{Key: "groups", Value: st.Groups},
		{Key: "created", Value: t.d.Created},
		{Key: "last-publish", Value: st.Last},
	}, nil
}

func (t topic) ctl(k string) synth.File {
	// only accepts the one value that a setting has so far.
	only := func(name, value string) synth.Command {
		return synth.Command{Name: name, Usage: value, Do: func(_ context.Context, args []string) error {
			if strings.Join(args, " ") == value {
				return nil
			}
			return dc.Errorf(dc.Unsupported, "", "", "%s can only be %s in this version", name, value)
		}}
	}
	later := func(name, usage string) synth.Command {
		return synth.Command{Name: name, Usage: usage, Do: func(context.Context, []string) error {
			return dc.Errorf(dc.Unsupported, "", "", "%s is not there in this version", name)
		}}
	}
	return synth.Ctl(k, synth.CtlSpec{
		Attr: t.fileAttr(0o666),
		Commands: []synth.Command{
			{Name: "drop", Do: func(ctx context.Context, args []string) error {
				if len(args) > 0 {
					return dc.Errorf(dc.Invalid, "", "", "drop takes no arguments: it removes this topic")
				}
				return t.store.Drop(ctx, t.d, false)
			}},
			only("partitions", "1"), only("framing", "line"),
			{Name: "retention", Usage: "DURATION|unlimited", Do: func(ctx context.Context, args []string) error {
				age, err := synth.Duration(strings.Join(args, " "), dc.MaxTopicRetention)
				if err != nil {
					return err
				}
				return t.store.SetRetention(ctx, t.d, client.TopicRetention{Age: &age})
			}},
			{Name: "retention-bytes", Usage: "SIZE|unlimited", Do: func(ctx context.Context, args []string) error {
				n, err := parseBytes(args)
				if err != nil {
					return err
				}
				return t.store.SetRetention(ctx, t.d, client.TopicRetention{Bytes: &n})
			}},
			later("compact", "key"), later("key", "json:.FIELD"),
		},
		Settings: func(ctx context.Context) ([]byte, error) {
			st, err := t.store.Stat(ctx, t.d)
			age, n := "unlimited", "unlimited"
			if st.Retention > 0 {
				age = st.Retention.String()
			}
			if st.RetentionBytes > 0 {
				n = strconv.FormatUint(st.RetentionBytes, 10)
			}
			return fmt.Appendf(nil, "partitions 1\nframing line\nretention %s\nretention-bytes %s\n", age, n), err
		},
	})
}

const produceUsage = `# Write messages as JSON, one a line, then read their offsets on the same descriptor:
#   {"value":"text of the message"}
# All of a request is published at once. With "fence":"TOKEN@LOCK" in a message all are refused (ESTALE) if that lock was taken by another since.
`

// produced is a line written to produce.
type produced struct {
	Value *string `json:"value"`
	Fence *string `json:"fence"`
}

func (t topic) produce(k string) synth.File {
	return synth.Clone(k, synth.CloneSpec{
		Attr: t.fileAttr(0o666), Usage: produceUsage, Max: dc.MaxValueBytes,
		Validate: func(_ context.Context, request []byte) error { _, _, err := t.parseProduce(request); return err },
		Commit: func(ctx context.Context, request []byte) (synth.Source, error) {
			lines, fence, err := t.parseProduce(request)
			if err != nil || len(lines) == 0 {
				return nil, err
			}
			if !fence.IsZero() {
				ctx = dc.WithFence(ctx, fence)
			}
			first, count, err := t.store.Publish(ctx, t.d, lines)
			if err != nil {
				return nil, err
			}
			var b bytes.Buffer
			for i := range count {
				fmt.Fprintf(&b, "{\"offset\":%d}\n", first+i)
			}
			return synth.Bytes(b.Bytes()), nil
		},
	})
}

// parseProduce turns JSON lines into a log's lines, and gives the fence they are under; the zero one for none.
func (t topic) parseProduce(request []byte) (out []byte, fence dc.Fence, err error) {
	dec := json.NewDecoder(bytes.NewReader(request))
	dec.DisallowUnknownFields()
	refuse := func(format string, args ...any) ([]byte, dc.Fence, error) {
		return nil, dc.Fence{}, dc.Errorf(dc.Invalid, "topic.produce", t.d.Name, format, args...)
	}
	for n := 1; ; n++ {
		var p produced
		err := dec.Decode(&p)
		switch {
		case errors.Is(err, io.EOF):
			return out, fence, nil
		case err != nil:
			return refuse("message %d: %w (only \"value\" and \"fence\" are known in this version)", n, err)
		case p.Value == nil:
			return refuse("message %d has no \"value\"", n)
		case strings.Contains(*p.Value, "\n"):
			return refuse("message %d has a newline in it: a message is one line", n)
		}
		if p.Fence != nil {
			f, err := dc.ParseFence(*p.Fence)
			if err != nil {
				return nil, f, err
			}
			if !fence.IsZero() && f != fence {
				return refuse("message %d has another fence than one before it: a request is published as one", n)
			}
			fence = f
		}
		out = append(append(out, *p.Value...), '\n')
	}
}

const fetchUsage = `# Write a request, then read messages on the same descriptor.
#   from=OFFSET or from=TIME (2006-01-02T15:04:05Z)   where to begin (default: the oldest)
#   limit=N       end after so many messages
#   follow        do not end with the log: wait for more
#   partition=0   the only one
#   format=json   {"offset":17,"time":"...","value":"..."} a line (the default), or format=raw
`

// A fetchRequest is what is written to fetch.
type fetchRequest struct {
	offset uint64
	time   time.Time
	limit  uint64 // 0: none
	follow bool
	raw    bool
}

func (t topic) fetch(k string) synth.File {
	return synth.Clone(k, synth.CloneSpec{
		Attr: t.fileAttr(0o666), Usage: fetchUsage, Max: dc.MaxCtlBytes,
		Validate: func(_ context.Context, request []byte) error { _, err := t.parseFetch(string(request)); return err },
		Commit: func(ctx context.Context, request []byte) (synth.Source, error) {
			r, err := t.parseFetch(string(request))
			if err != nil {
				return nil, err
			}
			if !r.time.IsZero() {
				if r.offset, err = t.store.Find(ctx, t.d, r.time); err != nil {
					return nil, err
				}
			}
			return synth.Pipe(ctx, func(ctx context.Context, emit func([]byte) error) error { return t.send(ctx, r, emit) }), nil
		},
	})
}

func (t topic) parseFetch(request string) (r fetchRequest, err error) {
	bad := func(format string, args ...any) (fetchRequest, error) {
		return r, dc.Errorf(dc.Invalid, "topic.fetch", t.d.Name, format, args...)
	}
	for line := range strings.Lines(request) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		for _, word := range strings.Fields(line) {
			name, value, _ := strings.Cut(word, "=")
			switch name {
			case "from":
				if r.offset, err = strconv.ParseUint(value, 10, 64); err != nil {
					if r.time, err = parseTime(value); err != nil {
						return bad("from=%s: want an offset or a time as 2006-01-02T15:04:05Z", value)
					}
				}
			case "limit":
				if r.limit, err = strconv.ParseUint(value, 10, 64); err != nil || r.limit == 0 {
					return bad("limit=%s: want a number of messages", value)
				}
			case "partition":
				if value != "0" {
					return bad("partition=%s: there is only partition 0", value)
				}
			case "follow":
				r.follow = true
			case "format":
				if value != "json" && value != "raw" {
					return bad("format=%s: want json or raw", value)
				}
				r.raw = value == "raw"
			default:
				return bad("there is no option %q; read this file to see those there are", word)
			}
		}
	}
	return r, nil
}

// fetchPage is how many messages are asked for at a time.
const fetchPage = 256

// send emits the messages of a request.
func (t topic) send(ctx context.Context, r fetchRequest, emit func([]byte) error) error {
	for sent := uint64(0); ; {
		n := uint64(fetchPage)
		if r.limit > 0 {
			n = min(n, r.limit-sent)
		}
		if n == 0 {
			return nil
		}
		messages, err := t.store.Fetch(ctx, t.d, r.offset, int(n))
		if err != nil {
			return err
		}
		for _, m := range messages {
			if sent > 0 && m.Offset != r.offset {
				return dc.Errorf(dc.Stale, "topic.fetch", t.d.Name, "messages %d to %d were removed by the topic's retention before they were read", r.offset, m.Offset-1)
			}
			if err := emit(r.format(m)); err != nil {
				return err
			}
			r.offset = m.Offset + 1
			sent++
		}
		if len(messages) > 0 {
			continue
		}
		if !r.follow {
			return nil
		}
		if err := t.await(ctx, r.offset); err != nil {
			return err
		}
	}
}

// await blocks until the log has a message at offset.
func (t topic) await(ctx context.Context, offset uint64) error {
	st, err := t.store.Stat(ctx, t.d)
	if err != nil || st.Next > offset {
		return err
	}
	grown := errors.New("grown")
	err = t.store.Follow(ctx, t.d, st.NextByte, func([]byte) error { return grown })
	if errors.Is(err, grown) {
		return nil
	}
	return err
}

func (r fetchRequest) format(m client.TopicMessage) []byte {
	if r.raw {
		return append(m.Value[:len(m.Value):len(m.Value)], '\n')
	}
	line := struct {
		Offset uint64 `json:"offset"`
		Time   string `json:"time"`
		Value  string `json:"value,omitempty"`
		Base64 []byte `json:"base64,omitempty"` // a value that is not UTF-8
	}{Offset: m.Offset, Time: m.Time.UTC().Format("2006-01-02T15:04:05.000Z07:00")}
	if utf8.Valid(m.Value) {
		line.Value = string(m.Value)
	} else {
		line.Base64 = m.Value
	}
	b, err := json.Marshal(line)
	if err != nil {
		b = []byte("{}") // no such struct fails to marshal
	}
	return append(b, '\n')
}
