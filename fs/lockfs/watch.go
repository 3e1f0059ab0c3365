package lockfs

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

const watchUsage = `# Write a request, then read on the same descriptor; or just read, for everything from now on.
#   from=REV      the first revision to tell (default: from now on)
#   path=P        a file, or a directory and what is directly in it, relative to this directory
#   recursive     everything below as well (the default without path)
#   before        also tell what each file was before, with its value
#   progress      also tell now and then up to which revision everything has been told
#   format=json   a JSON object a line (the default), or format=text
`

// A watchRequest is what is written to a watch file.
type watchRequest struct {
	client.LockWatch
	progress bool
	text     bool
}

// watchFile is a clone file: an optional request, then a stream of changes.
func watchFile(s Store, k, dir string) synth.File {
	return synth.Clone(k, synth.CloneSpec{
		Usage: watchUsage, Empty: true, Max: dc.MaxCtlBytes,
		Validate: func(_ context.Context, request []byte) error { _, err := parseWatch(dir, string(request)); return err },
		Commit: func(ctx context.Context, request []byte) (synth.Source, error) {
			r, err := parseWatch(dir, string(request))
			if err != nil {
				return nil, err
			}
			return follow(ctx, s, r), nil
		},
	})
}

// eventsFile is the stream of what changes in one directory, from now on.
func eventsFile(s Store, k, dir string) synth.File {
	return synth.Stream(k, synth.StreamSpec{Open: func(ctx context.Context, _ uint32) (synth.Source, error) {
		return follow(ctx, s, watchRequest{LockWatch: client.LockWatch{Path: dir}}), nil
	}})
}

func parseWatch(dir, request string) (watchRequest, error) {
	r := watchRequest{LockWatch: client.LockWatch{Path: dir}}
	recursive, named := false, false
	for line := range strings.Lines(request) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		for _, word := range strings.Fields(line) {
			name, value, _ := strings.Cut(word, "=")
			switch name {
			case "from":
				rev, err := strconv.ParseUint(value, 10, 64)
				if err != nil {
					return r, dc.Errorf(dc.Invalid, "lock.watch", dir, "from=%s: want a revision", value)
				}
				r.From = dc.Revision(rev)
			case "path":
				named = true
				if value = strings.Trim(value, "/"); value != "" {
					r.Path = join(dir, value)
				}
			case "recursive":
				recursive = true
			case "before":
				r.Before = true
			case "progress":
				r.progress = true
			case "format":
				if value != "json" && value != "text" {
					return r, dc.Errorf(dc.Invalid, "lock.watch", dir, "format=%s: there are json and text", value)
				}
				r.text = value == "text"
			default:
				return r, dc.Errorf(dc.Invalid, "lock.watch", dir, "unknown word %q; known are from=REV path=P recursive before progress format=json|text", word)
			}
		}
	}
	r.Recursive = recursive || !named
	return r, nil
}

// follow is the stream of what a request asks for.
func follow(ctx context.Context, s Store, r watchRequest) synth.Source {
	return synth.Pipe(ctx, func(ctx context.Context, emit func([]byte) error) error {
		return s.Watch(ctx, r.LockWatch, func(rev client.LockRevision) error {
			var out []byte
			if rev.Compacted != 0 {
				rev.Revision = rev.Compacted
				return emit(r.line(out, rev, client.LockEvent{Kind: "compacted"}))
			}
			if len(rev.Events) == 0 && r.progress {
				out = r.line(out, rev, client.LockEvent{Kind: "progress"})
			}
			for _, ev := range rev.Events {
				out = r.line(out, rev, ev)
			}
			if len(out) == 0 {
				return nil
			}
			return emit(out)
		})
	})
}

func (r watchRequest) line(out []byte, rev client.LockRevision, ev client.LockEvent) []byte {
	if r.text {
		return textLine(out, rev, ev)
	}
	return jsonLine(out, rev, ev)
}

// An event in JSON; the order of the fields is that of the lines.
type eventJSON struct {
	Rev     dc.Revision `json:"revision"`
	Op      string      `json:"op"`
	Path    *string     `json:"path,omitempty"`
	Version dc.Revision `json:"version,omitempty"`
	Value   *string     `json:"value,omitempty"`
	Base64  []byte      `json:"value64,omitempty"`
	Mode    string      `json:"mode,omitempty"`
	Fence   dc.Revision `json:"fence,omitempty"`
	Node    string      `json:"node,omitempty"`
	PID     uint32      `json:"pid,omitempty"`
	Command string      `json:"command,omitempty"`
	Lost    bool        `json:"lost,omitempty"`
	Before  *beforeJSON `json:"before,omitempty"`
	Time    string      `json:"time,omitempty"`
}

// beforeJSON is what a file was before an event.
type beforeJSON struct {
	Absent  bool        `json:"absent,omitempty"`
	Dir     bool        `json:"dir,omitempty"`
	Version dc.Revision `json:"version,omitempty"`
	Value   *string     `json:"value,omitempty"`
	Base64  []byte      `json:"value64,omitempty"`
}

func before(f *client.LockFile) *beforeJSON {
	if f == nil {
		return nil
	}
	b := &beforeJSON{Absent: f.Absent, Dir: f.Dir, Version: f.Version}
	if !f.Absent && !f.Dir {
		b.Value, b.Base64 = textOrBytes(f.Value)
	}
	return b
}

// aboutFiles tells whether an event is one of the store's, rather than of the stream's.
func aboutFiles(kind string) bool { return kind != "progress" && kind != "compacted" }

func jsonLine(out []byte, rev client.LockRevision, ev client.LockEvent) []byte {
	e := eventJSON{Rev: rev.Revision, Op: ev.Kind, Lost: ev.Lost, Before: before(ev.Before)}
	if aboutFiles(ev.Kind) {
		e.Path, e.Time = &ev.Path, rev.Time.UTC().Format(time.RFC3339Nano)
	}
	switch ev.Kind {
	case "put":
		e.Version = ev.File.Version
		e.Value, e.Base64 = textOrBytes(ev.File.Value)
	case "mkdir", "attr":
		e.Version, e.Mode = ev.File.Version, fmt.Sprintf("%04o", ev.File.Mode)
	case "lock", "unlock":
		e.Mode, e.Fence, e.Node, e.PID, e.Command = "shared", ev.Hold.Fence, ev.Hold.Node.String(), ev.Hold.PID, ev.Hold.Command
		if ev.Hold.Exclusive {
			e.Mode = "exclusive"
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic("lockfs: " + err.Error()) // strings, numbers and bytes only
	}
	return append(append(out, b...), '\n')
}

// textOrBytes gives a value as a JSON string if it is text, else as bytes for base64.
func textOrBytes(value []byte) (*string, []byte) {
	if utf8.Valid(value) {
		s := string(value)
		return &s, nil
	}
	return nil, value
}

// textLine is `REV OP PATH` and then words of the form key=value; text values are quoted as in Go and C.
func textLine(out []byte, rev client.LockRevision, ev client.LockEvent) []byte {
	out = fmt.Appendf(out, "%d %s", rev.Revision, ev.Kind)
	if aboutFiles(ev.Kind) {
		out = fmt.Appendf(out, " %s", strings.NewReplacer(" ", "%20", "\n", "%0A", "\t", "%09").Replace("/"+ev.Path))
	}
	switch ev.Kind {
	case "put":
		out = fmt.Appendf(out, " version=%d value=%s", ev.File.Version, strconv.QuoteToASCII(string(ev.File.Value)))
	case "lock", "unlock":
		mode := "shared"
		if ev.Hold.Exclusive {
			mode = "exclusive"
		}
		out = fmt.Appendf(out, " mode=%s fence=%d node=%s pid=%d command=%s", mode, ev.Hold.Fence, ev.Hold.Node, ev.Hold.PID, strconv.QuoteToASCII(ev.Hold.Command))
		if ev.Lost {
			out = append(out, " lost"...)
		}
	}
	return append(out, '\n')
}
