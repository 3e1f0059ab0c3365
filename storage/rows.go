package storage

import (
	"bytes"
	"slices"
	"sort"
)

// A row is one key with its value; a dropped row of an overlay hides what lies below it.
type row struct {
	key, value []byte
	dropped    bool
}

// chunkRows is how many rows a chunk of a rowMap holds at most: an insertion moves that many at worst.
const chunkRows = 256

// A rowMap holds rows in key order: sorted chunks in a sorted list. It is what a transaction has written so far, and the whole
// state of a [Volatile]. A step of an iteration is a search for the key after the last, so rows may come and go meanwhile.
type rowMap struct {
	chunks [][]row // none empty
	rows   int
}

// find gives the place of the first row whose key is >= key, and whether that row has the key. The place may be one
// past the end of the last chunk.
func (m *rowMap) find(key []byte) (chunk, at int, same bool) {
	chunk = max(0, sort.Search(len(m.chunks), func(i int) bool { return bytes.Compare(m.chunks[i][0].key, key) > 0 })-1)
	if len(m.chunks) == 0 {
		return 0, 0, false
	}
	c := m.chunks[chunk]
	at = sort.Search(len(c), func(i int) bool { return bytes.Compare(c[i].key, key) >= 0 })
	return chunk, at, at < len(c) && bytes.Equal(c[at].key, key)
}

// lookup finds the row of key.
func (m *rowMap) lookup(key []byte) (row, bool) {
	c, at, same := m.find(key)
	if !same {
		return row{}, false
	}
	return m.chunks[c][at], true
}

// ceiling finds the first row at or after key; with past, strictly after it.
func (m *rowMap) ceiling(key []byte, past bool) (row, bool) {
	c, at, same := m.find(key)
	if same && past {
		at++
	}
	if c < len(m.chunks) && at == len(m.chunks[c]) {
		c, at = c+1, 0
	}
	if c >= len(m.chunks) {
		return row{}, false
	}
	return m.chunks[c][at], true
}

// below finds the last row strictly before key; a nil key means the last row of all.
func (m *rowMap) below(key []byte) (row, bool) {
	if len(m.chunks) == 0 {
		return row{}, false
	}
	if key == nil {
		last := m.chunks[len(m.chunks)-1]
		return last[len(last)-1], true
	}
	c, at, _ := m.find(key)
	if at == 0 {
		if c == 0 {
			return row{}, false
		}
		c--
		at = len(m.chunks[c])
	}
	return m.chunks[c][at-1], true
}

// put sets a row; the map keeps its slices.
func (m *rowMap) put(r row) {
	if len(m.chunks) == 0 {
		m.chunks = append(m.chunks, []row{r})
		m.rows++
		return
	}
	c, at, same := m.find(r.key)
	if same {
		m.chunks[c][at] = r
		return
	}
	m.chunks[c] = slices.Insert(m.chunks[c], at, r)
	m.rows++
	if full := m.chunks[c]; len(full) > chunkRows {
		upper := slices.Clone(full[chunkRows/2:])
		clear(full[chunkRows/2:])
		m.chunks[c] = full[:chunkRows/2]
		m.chunks = slices.Insert(m.chunks, c+1, upper)
	}
}

// remove takes a row out.
func (m *rowMap) remove(key []byte) {
	c, at, same := m.find(key)
	if !same {
		return
	}
	m.rows--
	if m.chunks[c] = slices.Delete(m.chunks[c], at, at+1); len(m.chunks[c]) == 0 {
		m.chunks = slices.Delete(m.chunks, c, c+1)
	}
}

// get finds the value of key.
func (m *rowMap) get(key []byte) ([]byte, bool) {
	r, ok := m.lookup(key)
	return r.value, ok && !r.dropped
}

// each yields the rows of a span in its order, dropped ones too, until yield returns false; it tells whether it got through.
func (m *rowMap) each(s Span, yield func(row) bool) bool {
	if s.Reverse {
		for r, ok := m.below(s.End); ok && bytes.Compare(r.key, s.Start) >= 0; r, ok = m.below(r.key) {
			if !yield(r) {
				return false
			}
		}
		return true
	}
	for r, ok := m.ceiling(s.Start, false); ok && (s.End == nil || bytes.Compare(r.key, s.End) < 0); r, ok = m.ceiling(r.key, true) {
		if !yield(r) {
			return false
		}
	}
	return true
}
