package kvfs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// load is the bulk door of a table: lines of JSON or TSV are written into it, the count is read back. A write returns when its whole lines
// are committed, in batches; a line that is refused fails its write with its number, and nothing of the batch that it is in is loaded.
type load struct {
	key   string
	store Store
	table client.Descriptor
}

func newLoad(key string, s Store, t client.Descriptor) synth.File {
	return &load{key: key, store: s, table: t}
}

func (l *load) Key() string { return l.key }

func (l *load) Attr(context.Context) (synth.Attr, error) { return synth.Attr{Mode: 0o666}, nil }

func (l *load) Open(ctx context.Context, _ uint32) (synth.Handle, error) {
	p, _ := dc.PrincipalOf(ctx)
	return &loader{load: l, principal: p}, nil
}

// A loader is one open load.
type loader struct {
	*load
	principal dc.Principal

	mu      sync.Mutex
	partial []byte // of a line whose end has not come yet
	lines   int
	rows    int
	answer  []byte
	asked   bool
	closer  context.Context // of the latest close(2) that left a line without an end
	refused bool            // that close was told that the line is none
	settled chan struct{}   // closed when such a line is loaded; nil if none is
	failed  error           // a refused line ends the load: the ones after it must not be loaded as if nothing were missing
}

var (
	_ synth.Reader   = (*loader)(nil)
	_ synth.Writer   = (*loader)(nil)
	_ synth.Flusher  = (*loader)(nil)
	_ synth.Streamer = (*loader)(nil)
	_ synth.Settler  = (*loader)(nil)
)

// Stream tells that offsets mean nothing.
func (l *loader) Stream() bool { return true }

// maxLine bounds a line: the largest row in JSON with every byte escaped.
const maxLine = 6*dc.MaxValueBytes + 6*dc.MaxKeyBytes + dc.KiB

// Write loads the whole lines of data.
func (l *loader) Write(ctx context.Context, data []byte, _ int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return 0, l.failed
	}
	l.asked, l.answer, l.refused = false, nil, false
	end := bytes.LastIndexByte(data, '\n') + 1
	if end == 0 {
		if len(l.partial)+len(data) > maxLine {
			return 0, l.fail(dc.Errorf(dc.TooLarge, "kv.load", l.table.Name, "line %d is longer than %d bytes", l.lines+1, maxLine))
		}
		l.partial = append(l.partial, data...)
		return len(data), nil
	}
	whole := append(l.partial, data[:end]...)
	l.partial = append([]byte(nil), data[end:]...)
	if err := l.loadLines(ctx, whole); err != nil {
		return 0, l.fail(err)
	}
	return len(data), nil
}

func (l *loader) fail(err error) error {
	l.failed = err
	return err
}

// loadLines commits lines in batches.
func (l *loader) loadLines(ctx context.Context, text []byte) error {
	var batch []client.KVPair
	size, first := 0, l.lines+1
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := l.store.Load(ctx, l.table, batch); err != nil {
			return dc.Wrap(err, fmt.Sprintf("kv.load: lines %d to %d (none of them is loaded, all before are)", first, l.lines), l.table.Name)
		}
		l.rows += len(batch)
		batch, size, first = nil, 0, l.lines+1
		return nil
	}
	for line := range bytes.Lines(text) {
		l.lines++
		line = bytes.TrimSuffix(line, []byte{'\n'})
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		p, err := parseLine(line)
		if err != nil {
			l.lines--
			if err := flush(); err != nil {
				return err
			}
			l.lines++
			return dc.Wrap(err, fmt.Sprintf("kv.load: line %d (all before are loaded)", l.lines), l.table.Name)
		}
		if size+len(p.Key)+len(p.Value) > dc.MaxBatchBytes/2 || len(batch) == maxBatchRows {
			l.lines--
			if err := flush(); err != nil {
				return err
			}
			l.lines++
			first = l.lines
		}
		batch, size = append(batch, p), size+len(p.Key)+len(p.Value)
	}
	return flush()
}

// maxBatchRows are put in one command.
const maxBatchRows = 2048

// parseLine reads {"key":..,"value":..} or KEY<TAB>VALUE.
func parseLine(line []byte) (client.KVPair, error) {
	if line[0] == '{' {
		var r jsonRow
		if err := json.Unmarshal(line, &r); err != nil {
			return client.KVPair{}, dc.Errorf(dc.Invalid, "", "", "not JSON: %w", err)
		}
		if r.Key == "" {
			return client.KVPair{}, dc.Errorf(dc.Invalid, "", "", `no "key"`)
		}
		return client.KVPair{Key: r.Key, Value: r.value()}, nil
	}
	key, value, ok := bytes.Cut(line, []byte{'\t'})
	if !ok {
		return client.KVPair{}, dc.Errorf(dc.Invalid, "", "", `neither {"key":..,"value":..} nor KEY<TAB>VALUE: %.60q`, line)
	}
	return client.KVPair{Key: tsvUnescape.Replace(string(key)), Value: []byte(tsvUnescape.Replace(string(value)))}, nil
}

// Flush looks at a last line that has no newline. It must not be loaded yet: a descriptor is closed by everybody who inherited it, and the line may go on.
func (l *loader) Flush(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil || len(bytes.TrimSpace(l.partial)) == 0 {
		return l.failed
	}
	l.closer = context.WithoutCancel(ctx)
	_, err := parseLine(l.partial)
	if l.refused = err != nil; l.refused {
		return dc.Wrap(err, fmt.Sprintf("kv.load: line %d (all before are loaded)", l.lines+1), l.table.Name)
	}
	if l.settled == nil {
		l.settled = make(chan struct{})
	}
	return nil
}

// Settling implements synth.Settler: closed once the last line is loaded.
func (l *loader) Settling() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settled
}

// finish loads a last line that has no newline.
func (l *loader) finish(ctx context.Context) error {
	rest := l.partial
	l.partial = nil
	if l.failed != nil || len(rest) == 0 {
		return l.failed
	}
	if err := l.loadLines(ctx, rest); err != nil {
		return l.fail(err)
	}
	return nil
}

// Read gives the number of rows loaded through this descriptor.
func (l *loader) Read(ctx context.Context, dst []byte, _ int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.finish(ctx); err != nil {
		return 0, err
	}
	if !l.asked {
		l.asked, l.answer = true, fmt.Appendf(nil, "%d\n", l.rows)
	}
	n := copy(dst, l.answer)
	l.answer = l.answer[n:]
	return n, nil
}

// Release loads a last line that has no newline, unless a close has refused it.
func (l *loader) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closer != nil && l.failed == nil && !l.refused {
		ctx, cancel := context.WithTimeout(l.closer, dc.OpTimeout)
		defer cancel()
		if err := l.finish(ctx); err != nil {
			synth.Report(ctx, err)
		}
	}
	if l.settled != nil {
		close(l.settled)
	}
}
