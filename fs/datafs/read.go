package datafs

import (
	"context"
	"errors"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// changesSeen is how often a read starts over because a block it wanted has been deleted: the file was overwritten meanwhile.
const changesSeen = 5

func timeOf(unixNano int64) time.Time { return time.Unix(0, unixNano) }

// A view is what one read sees: committed content and what lies over it, taken at one moment.
type view struct {
	content *file.Content
	local   []buffer // later ones over earlier ones
	localTo int64    // the end of what is written and not published
	tail    []byte   // at the end of the committed content
}

// size is the file's length in this view.
func (v *view) size() int64 { return max(v.content.Attr.Size, v.localTo) + int64(len(v.tail)) }

// look takes a view for reading [off, end).
func (n *inode) look(ctx context.Context, off, end int64) (*view, error) {
	for {
		n.mu.Lock()
		if c := n.content; c != nil && c.From <= off && off < c.To {
			v := &view{content: c, localTo: max(n.dirty.end(), n.flushing.end())}
			v.local = []buffer{n.flushing.cut(off, end), n.dirty.cut(off, end)}
			v.tail = append(append(v.tail, n.flushingTail...), n.tail...)
			n.mu.Unlock()
			return v, nil
		}
		moving := len(n.flushingTail) > 0
		n.mu.Unlock()
		if moving { // content fetched now might have the tail in it, or not
			if err := n.begin(ctx); err != nil {
				return nil, err
			}
			n.end()
		}
		c, err := n.fs.cfg.Service.Content(ctx, n.ino, off)
		if err != nil {
			return nil, err
		}
		n.learn(&c)
	}
}

// forget drops content that turned out to be old.
func (n *inode) forget(c *file.Content) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.content == c {
		n.content = nil
	}
}

// refresh asks whether the content known is the current one, for reads that the kernel does not check itself.
func (n *inode) refresh(ctx context.Context) error {
	a, err := n.fs.cfg.Service.Stat(ctx, n.ino, 0)
	if err == nil {
		_, err = n.settled(ctx, a)
	}
	return err
}

// read fills dst from off on; less than that only at the end of the file.
func (n *inode) read(ctx context.Context, off int64, dst []byte) (int, error) {
	got := 0
	for try := 0; got < len(dst); {
		v, err := n.look(ctx, off+int64(got), off+int64(len(dst)))
		if err != nil {
			return 0, err
		}
		m, err := n.readView(ctx, v, off+int64(got), dst[got:])
		if errors.Is(err, dc.NotFound) {
			n.forget(v.content)
			if try++; try < changesSeen {
				continue
			}
			err = dc.Errorf(dc.Corrupt, "read", n.ino.String(), "a block of the file is lost: %w", err)
		}
		if err != nil {
			return 0, err
		}
		if m == 0 {
			break
		}
		got += m
	}
	return got, nil
}

// readView reads from a view, up to the end of what its content covers.
func (n *inode) readView(ctx context.Context, v *view, off int64, dst []byte) (int, error) {
	end := min(off+int64(len(dst)), v.size())
	if end <= off {
		return 0, nil
	}
	if off < v.content.To && end > v.content.To {
		end = v.content.To
	}
	dst = dst[:end-off]
	clear(dst)
	if err := n.readCommitted(ctx, v.content, off, dst); err != nil {
		return 0, err
	}
	for i := range v.local {
		v.local[i].overlay(off, dst)
	}
	if len(v.tail) > 0 {
		t := buffer{runs: []run{{v.size() - int64(len(v.tail)), v.tail}}}
		t.overlay(off, dst)
	}
	return len(dst), nil
}

// readCommitted puts the committed bytes of [off, off+len(dst)) into dst, which is zero.
func (n *inode) readCommitted(ctx context.Context, c *file.Content, off int64, dst []byte) error {
	end := min(off+int64(len(dst)), c.Attr.Size)
	if end <= off {
		return nil
	}
	dst = dst[:end-off]
	if c.InlineOff < end && c.InlineEnd() > off {
		from := max(off, c.InlineOff)
		copy(dst[from-off:], c.Inline[from-c.InlineOff:])
	}
	for _, e := range c.Extents {
		from, to := max(off, e.Off), min(end, e.End())
		if from >= to {
			continue
		}
		if err := n.fs.blocks.read(ctx, e, e.BlockOff+from-e.Off, dst[from-off:to-off]); err != nil {
			return dc.Wrap(err, "read", n.ino.String())
		}
	}
	return nil
}
