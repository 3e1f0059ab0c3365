package storage

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestRowMapAgainstASortedSlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m rowMap
		model := map[string]string{}
		for range rapid.IntRange(0, 2000).Draw(t, "steps") {
			key := fmt.Sprintf("%04x", rapid.Uint16().Draw(t, "key")%3000)
			if rapid.IntRange(0, 3).Draw(t, "op") == 0 {
				m.remove([]byte(key))
				delete(model, key)
			} else {
				m.put(row{key: []byte(key), value: []byte(key)})
				model[key] = key
			}
		}
		if m.rows != len(model) {
			t.Fatalf("%d rows, want %d", m.rows, len(model))
		}
		s := Span{Reverse: rapid.Bool().Draw(t, "reverse"), Start: []byte(fmt.Sprintf("%04x", rapid.IntRange(0, 3000).Draw(t, "start")))}
		if rapid.Bool().Draw(t, "bounded") {
			s.End = []byte(fmt.Sprintf("%04x", rapid.IntRange(0, 3000).Draw(t, "end")))
		}
		var want []string
		for k := range model {
			if k >= string(s.Start) && (s.End == nil || k < string(s.End)) {
				want = append(want, k)
			}
		}
		slices.Sort(want)
		if s.Reverse {
			slices.Reverse(want)
		}
		var got []string
		m.each(s, func(r row) bool { got = append(got, string(r.key)); return true })
		if !slices.Equal(got, want) {
			t.Fatalf("span %q..%q: got %v, want %v", s.Start, s.End, got, want)
		}
	})
}
