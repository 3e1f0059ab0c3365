package storage

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"

	"missingos/srv/dc"
)

// Exactly-once commands. A command carries (client, seq, done, issued), see [dc.RequestID]. The rules, all functions of the log:
//
//   - A (client, seq) that has been answered gets the same answer again.
//   - A seq below the client's done watermark was answered and forgotten: refused (Stale).
//   - A command issued more than [dc.DedupeWindow] before the log's clock, or after it, is refused (Stale) and leaves no trace.
//   - An answer is dropped when done passes it, and at the latest when its entry is two windows old: a retry that comes
//     later was issued more than one window ago (an issue time is at most one window ahead of the log) and is refused by
//     the rule before. A client none of whose answers are left is forgotten.
//   - Repeated and refused commands change nothing, so that the state depends on first deliveries only.
//
// What is kept lives in memory and, for restarts and snapshots, in one row an entry: the answers given by that entry. The
// row goes when none is needed. The greatest done watermark of a client came with a command whose own answer is
// still kept (its seq is not below its done), so the rows are all that a restart needs.
type answers struct {
	callers map[uint64]*caller
	byAge   list.List // of *page, oldest first
	now     int64     // clock of the entry being applied
	page    *page     // of the entry being applied
}

// A caller is what is known of one client.
type caller struct {
	done  uint64
	given map[uint64]*answer // never empty: the command with the greatest done is itself not below it
}

// An answer is what one command was answered.
type answer struct {
	result Result
	done   uint64 // that the command carried
	page   *page
}

// A page is the answers given by one entry.
type page struct {
	index dc.Index
	clock int64
	slots []slot
	live  int // answers not yet dropped
	elem  *list.Element
}

type slot struct{ client, seq, done uint64 }

func newAnswers() *answers { return &answers{callers: map[uint64]*caller{}} }

// begin starts an entry: it forgets what has become too old.
func (a *answers) begin(over *overlay, index dc.Index, clock int64) {
	a.now = clock
	for e := a.byAge.Front(); e != nil; e = a.byAge.Front() {
		p := e.Value.(*page)
		if p.clock+2*dc.DedupeWindow.Milliseconds() >= clock {
			break
		}
		for _, s := range p.slots {
			a.expire(p, s)
		}
		a.discard(over, p)
	}
	a.page = &page{index: index, clock: clock}
}

// expire drops one answer of a page that has become too old. The watermark falls to the greatest that came with a kept
// answer, as it would be after a restart.
func (a *answers) expire(p *page, s slot) {
	c := a.callers[s.client]
	if c == nil || c.given[s.seq] == nil || c.given[s.seq].page != p {
		return
	}
	if delete(c.given, s.seq); len(c.given) == 0 {
		delete(a.callers, s.client)
		return
	}
	if c.done == s.done {
		c.done = 0
		for _, kept := range c.given {
			c.done = max(c.done, kept.done)
		}
	}
}

func (a *answers) discard(over *overlay, p *page) {
	if p.elem != nil {
		a.byAge.Remove(p.elem)
		p.elem = nil
		over.drop(pageKey(p.index))
	}
}

// recall tells what a command that must not be applied (again) is answered.
func (a *answers) recall(id dc.RequestID) (Result, bool) {
	if id.Client == 0 {
		return Result{}, false
	}
	window := dc.DedupeWindow.Milliseconds()
	refuse := func(kind dc.Kind, format string, args ...any) (Result, bool) {
		return Result{Err: dc.Errorf(kind, "apply", "", format, args...)}, true
	}
	c := a.callers[id.Client]
	if c != nil {
		if given, ok := c.given[id.Seq]; ok {
			return given.result, true
		}
	}
	switch {
	case id.Seq == 0 || id.Done > id.Seq || id.Seq-id.Done >= dc.MaxInFlightPerClient:
		return refuse(dc.Invalid, "request %d with done %d is outside of the window of %d (MaxInFlightPerClient)", id.Seq, id.Done, dc.MaxInFlightPerClient)
	case c != nil && id.Seq < c.done:
		return refuse(dc.Stale, "request %d was already answered", id.Seq)
	case id.Issued < a.now-window:
		return refuse(dc.Stale, "request expired: it was issued %d s before the cluster's clock", (a.now-id.Issued)/1000)
	case id.Issued > a.now+window:
		return refuse(dc.Stale, "request expired: it was issued %d s ahead of the cluster's clock", (id.Issued-a.now)/1000)
	}
	return Result{}, false
}

// record keeps the answer to a command that was applied.
func (a *answers) record(over *overlay, id dc.RequestID, r Result) {
	if id.Client == 0 {
		return
	}
	a.keep(over, a.page, slot{client: id.Client, seq: id.Seq, done: id.Done}, r)
}

func (a *answers) keep(over *overlay, p *page, s slot, r Result) {
	c := a.callers[s.client]
	if c == nil {
		c = &caller{given: map[uint64]*answer{}}
		a.callers[s.client] = c
	}
	c.given[s.seq] = &answer{result: r, done: s.done, page: p}
	p.slots = append(p.slots, s)
	p.live++
	if s.done > c.done {
		a.forget(over, c, s.done)
	}
}

// forget drops the answers below done. It walks whichever is shorter: the numbers, or the answers kept.
func (a *answers) forget(over *overlay, c *caller, done uint64) {
	drop := func(seq uint64) {
		if given := c.given[seq]; given != nil {
			delete(c.given, seq)
			if given.page.live--; given.page.live == 0 {
				a.discard(over, given.page)
			}
		}
	}
	if done-c.done <= uint64(len(c.given)) {
		for seq := c.done; seq < done; seq++ {
			drop(seq)
		}
	} else {
		for seq := range c.given { // the order does not matter: each drop is independent and discards whole rows
			if seq < done {
				drop(seq)
			}
		}
	}
	c.done = done
}

// end writes the row of the entry's answers.
func (a *answers) end(over *overlay) {
	p := a.page
	a.page = nil
	if p.live == 0 {
		return
	}
	p.elem = a.byAge.PushBack(p)
	over.set(pageKey(p.index), a.encode(p))
}

const pagePrefix = "!e"

func pageKey(index dc.Index) []byte {
	return binary.BigEndian.AppendUint64([]byte(pagePrefix), uint64(index))
}

// encode writes a page: its clock, then its live answers.
func (a *answers) encode(p *page) []byte {
	b := binary.AppendVarint(nil, p.clock)
	live := p.slots[:0]
	for _, s := range p.slots {
		given := a.callers[s.client].given[s.seq]
		if given == nil {
			continue
		}
		live = append(live, s)
		b = binary.LittleEndian.AppendUint64(b, s.client)
		b = binary.AppendUvarint(b, s.seq)
		b = binary.AppendUvarint(b, s.done)
		b = appendResult(b, given.result)
	}
	p.slots = live
	return b
}

// load rebuilds the table from the rows of a shard.
func (a *answers) load(base Reader) error {
	over := &overlay{base: base} // rows that load finds are live, so that nothing is dropped
	for key, value := range base.Scan(Span{Start: []byte(pagePrefix), End: []byte("!f")}) {
		p := &page{index: dc.Index(binary.BigEndian.Uint64(key[len(pagePrefix):]))}
		d := decoder{b: append([]byte(nil), value...)}
		p.clock = d.varint()
		p.elem = a.byAge.PushBack(p)
		for len(d.b) > 0 && !d.bad {
			s := slot{client: d.fixed64(), seq: d.uvarint(), done: d.uvarint()}
			a.keep(over, p, s, d.result())
		}
		if d.bad {
			return fmt.Errorf("answers of entry %d do not decode", p.index)
		}
	}
	if over.rows.rows > 0 {
		return fmt.Errorf("%d rows of answers should have been dropped before", over.rows.rows)
	}
	return nil
}

// appendResult encodes a result: a flag, then the body or the error's parts.
func appendResult(b []byte, r Result) []byte {
	if r.Err == nil {
		return appendBytes(append(b, 0), r.Body)
	}
	var e *dc.Error
	errors.As(r.Err, &e)
	why := ""
	if e.Err != nil {
		why = e.Err.Error()
	}
	b = append(b, 1, byte(e.Kind))
	b = appendBytes(b, e.Op)
	b = appendBytes(b, e.Path)
	return appendBytes(b, why)
}

func appendBytes[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// A decoder reads what the append functions wrote; bad is set at the first damage and stays.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) fixed64() uint64 {
	if v := d.take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		n = -1
	}
	d.take(n)
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		n = -1
	}
	d.take(n)
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		n = uint64(len(d.b)) + 1
	}
	return d.take(int(n))
}

func (d *decoder) result() Result {
	flag := d.take(1)
	if d.bad || flag[0] == 0 {
		return Result{Body: d.bytes()}
	}
	kind := d.take(1)
	if d.bad {
		return Result{}
	}
	e := &dc.Error{Kind: dc.Kind(kind[0]), Op: string(d.bytes()), Path: string(d.bytes())}
	if why := d.bytes(); len(why) > 0 {
		e.Err = errors.New(string(why))
	}
	return Result{Err: e}
}
