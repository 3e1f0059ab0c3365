package synth

import (
	"context"
	"fmt"
	"strings"

	"missingos/srv/dc"
)

// A Command is one verb of a [Ctl] file.
type Command struct {
	Name  string // the first word of the line
	Usage string // the words after it, for the message about a wrong one: "KEY=VALUE ..."
	// Do takes effect (replicated, durable) before it returns. args are the words after the name. For wrong arguments
	// return dc.Invalid.
	Do func(ctx context.Context, args []string) error
}

// CtlSpec describes a [Ctl] file.
type CtlSpec struct {
	Path     string // what errors call the file; "": by its key
	Attr     Attr   // owner, times and permission bits (0: 0666)
	Commands []Command
	// Settings gives what reading shows, in the form that can be written back; nil shows the commands as comments.
	Settings func(ctx context.Context) ([]byte, error)
}

// Ctl is a control file: each write(2) holds one command a line, in effect in order when the write returns. The first
// error fails the write, and the lines after it are not looked at. Empty lines and lines that begin with # mean nothing.
func Ctl(key string, s CtlSpec) File {
	if s.Attr.Mode == 0 {
		s.Attr.Mode = 0o666
	}
	if s.Path == "" {
		s.Path = key
	}
	f := &ctlFile{s: s}
	read := s.Settings
	if read == nil {
		read = func(context.Context) ([]byte, error) { return f.usage(), nil }
	}
	f.valueFile = valueFile{key: key, s: ValueSpec{Attr: s.Attr, Read: read}}
	return f
}

type ctlFile struct {
	valueFile
	s CtlSpec
}

func (f *ctlFile) Open(context.Context, uint32) (Handle, error) {
	return &ctlHandle{valueHandle: valueHandle{f: &f.valueFile}, ctl: f}, nil
}

type ctlHandle struct {
	valueHandle
	ctl *ctlFile
}

func (h *ctlHandle) Write(ctx context.Context, data []byte, _ int64) (int, error) {
	if len(data) > dc.MaxCtlBytes {
		return 0, dc.Errorf(dc.TooLarge, "write", h.ctl.s.Path, "%d bytes of commands exceed the limit of %d a write", len(data), dc.MaxCtlBytes)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for i, line := range lines {
		if err := h.ctl.run(ctx, line); err != nil {
			path := h.ctl.s.Path
			if len(lines) > 1 {
				path = fmt.Sprintf("%s line %d", path, i+1)
			}
			return 0, dc.Wrap(err, "ctl", path)
		}
	}
	h.mu.Lock()
	h.loaded = false
	h.mu.Unlock()
	return len(data), nil
}

func (f *ctlFile) run(ctx context.Context, line string) error {
	words := strings.Fields(line)
	if len(words) == 0 || strings.HasPrefix(words[0], "#") {
		return nil
	}
	for _, c := range f.s.Commands {
		if c.Name != words[0] {
			continue
		}
		err := c.Do(ctx, words[1:])
		if err != nil && dc.KindOf(err) == dc.Invalid && c.Usage != "" {
			return dc.Errorf(dc.Invalid, c.Name, "", "%w (usage: %s %s)", err, c.Name, c.Usage)
		}
		return err
	}
	names := make([]string, len(f.s.Commands))
	for i, c := range f.s.Commands {
		names[i] = c.Name
	}
	return dc.Errorf(dc.Invalid, "", "", "there is no command %q here; there are: %s", words[0], strings.Join(names, ", "))
}

// usage lists the commands, as comments so that it can be written back.
func (f *ctlFile) usage() []byte {
	var b strings.Builder
	for _, c := range f.s.Commands {
		b.WriteString("# " + strings.TrimSpace(c.Name+" "+c.Usage) + "\n")
	}
	return []byte(b.String())
}
