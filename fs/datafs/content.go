package datafs

import (
	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// fitsInline tells whether data at off can join the inline run; the machine decides, this only saves asking in vain.
func fitsInline(c *file.Content, off int64, n int) bool {
	from, to := off, off+int64(n)
	if len(c.Inline) > 0 {
		if from > c.InlineEnd() || to < c.InlineOff {
			return false
		}
		from, to = min(from, c.InlineOff), max(to, c.InlineEnd())
	}
	return to-from <= dc.InlineFileBytes
}

// foldable gives the inline run if data at off would continue it and no extent hides a part of it.
func foldable(c *file.Content, off int64) []byte {
	if c == nil || len(c.Inline) == 0 || c.InlineEnd() != off || c.From > c.InlineOff || c.To < off {
		return nil
	}
	for _, e := range c.Extents {
		if e.Off < off && e.End() > c.InlineOff {
			return nil
		}
	}
	return c.Inline
}
