package datafs

import (
	"slices"

	"missingos/srv/dc"
)

// A run is written data at an offset.
type run struct {
	off  int64
	data []byte
}

func (r run) end() int64 { return r.off + int64(len(r.data)) }

// A buffer is written data: runs by offset that do not overlap. Runs may touch: they are not joined beyond a block's length.
type buffer struct {
	runs  []run
	bytes int64
}

func (b *buffer) empty() bool { return len(b.runs) == 0 }

// end is the offset after the last byte, or 0.
func (b *buffer) end() int64 {
	if b.empty() {
		return 0
	}
	return b.runs[len(b.runs)-1].end()
}

// write copies p to off, over what is there.
func (b *buffer) write(off int64, p []byte) {
	if last := len(b.runs) - 1; last >= 0 && b.runs[last].end() <= off {
		b.extend(last, off, p) // in order: the common case
		return
	}
	end := off + int64(len(p))
	i, _ := slices.BinarySearchFunc(b.runs, off, func(r run, off int64) int {
		if r.end() <= off {
			return -1
		}
		return 1
	})
	for len(p) > 0 && i < len(b.runs) && b.runs[i].off < end {
		r := b.runs[i]
		if gap := r.off - off; gap > 0 { // before the run
			n := min(gap, int64(len(p)))
			b.insert(i, off, p[:n])
			p, off = p[n:], off+n
			i++
			continue
		}
		n := copy(r.data[off-r.off:], p)
		p, off = p[n:], off+int64(n)
		i++
	}
	if len(p) == 0 {
		return
	}
	if i > 0 && b.runs[i-1].end() == off && i == len(b.runs) {
		b.extend(i-1, off, p)
		return
	}
	b.insert(i, off, p)
}

// extend adds p at off, which is not before the end of run i, the last.
func (b *buffer) extend(i int, off int64, p []byte) {
	b.bytes += int64(len(p))
	if r := &b.runs[i]; r.end() == off && len(r.data) < dc.MaxBlockBytes {
		n := min(len(p), dc.MaxBlockBytes-len(r.data))
		if need := len(r.data) + n; need > cap(r.data) {
			grown := make([]byte, len(r.data), min(max(need, 2*cap(r.data)), dc.MaxBlockBytes))
			copy(grown, r.data)
			r.data = grown
		}
		r.data = append(r.data, p[:n]...)
		p, off = p[n:], off+int64(n)
	}
	for len(p) > 0 {
		n := min(len(p), dc.MaxBlockBytes)
		b.runs = append(b.runs, run{off, slices.Clone(p[:n])})
		p, off = p[n:], off+int64(n)
	}
}

func (b *buffer) insert(i int, off int64, p []byte) {
	b.bytes += int64(len(p))
	b.runs = slices.Insert(b.runs, i, run{off, slices.Clone(p)})
}

// absorb takes all of later, which was written after what b holds. Data that b had stays as it is, because uploads may
// still be reading it: where the two meet, b gets copies.
func (b *buffer) absorb(later *buffer) {
	switch {
	case later.empty():
	case b.empty():
		*b = *later
	default:
		for i := range b.runs {
			b.runs[i].data = slices.Clone(b.runs[i].data)
		}
		for _, r := range later.runs {
			b.write(r.off, r.data)
		}
	}
	*later = buffer{}
}

// overlay copies what b holds of [off, off+len(dst)) into dst.
func (b *buffer) overlay(off int64, dst []byte) {
	end := off + int64(len(dst))
	i, _ := slices.BinarySearchFunc(b.runs, off, func(r run, off int64) int {
		if r.end() <= off {
			return -1
		}
		return 1
	})
	for ; i < len(b.runs) && b.runs[i].off < end; i++ {
		r := b.runs[i]
		from := max(off, r.off)
		copy(dst[from-off:], r.data[from-r.off:])
	}
}

// cut copies what b holds of [off, end) into a buffer of its own.
func (b *buffer) cut(off, end int64) buffer {
	var out buffer
	for _, r := range b.runs {
		if from, to := max(off, r.off), min(end, r.end()); from < to {
			out.insert(len(out.runs), from, r.data[from-r.off:to-r.off])
		}
	}
	return out
}
