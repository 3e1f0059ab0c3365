package tuple_test

import (
	"bytes"
	"cmp"
	"testing"

	"pgregory.net/rapid"

	"missingos/storage/tuple"
)

// awkward draws byte strings dense in the bytes that escaping is about.
func awkward() *rapid.Generator[[]byte] {
	return rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0, 1, 2, 'a', 0xfe, 0xff}), 0, 6)
}

func TestStringsKeepTheirOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := awkward().Draw(t, "a"), awkward().Draw(t, "b")
		tail := awkward().Draw(t, "tail")
		ka := append(tuple.AppendString(nil, a), tail...)
		kb := tuple.AppendString(nil, b)
		if bytes.Equal(a, b) {
			return
		}
		if got, want := bytes.Compare(ka, kb), bytes.Compare(a, b); got != want {
			t.Fatalf("%x and %x compare as %d, their keys as %d", a, b, want, got)
		}
	})
}

func TestStringsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, tail := awkward().Draw(t, "a"), awkward().Draw(t, "tail")
		got, rest, ok := tuple.TakeString(append(tuple.AppendString(nil, a), tail...))
		if !ok || !bytes.Equal(got, a) || !bytes.Equal(rest, tail) {
			t.Fatalf("%x then %x: got %x then %x, %v", a, tail, got, rest, ok)
		}
	})
}

func TestPartialStringsArePrefixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := awkward().Draw(t, "a"), awkward().Draw(t, "b")
		prefix := tuple.AppendPartial(nil, a)
		if got, want := bytes.HasPrefix(tuple.AppendString(nil, b), prefix), bytes.HasPrefix(b, a); want && !got {
			t.Fatalf("%x begins with %x, its key does not", b, a)
		}
	})
}

func TestNumbersKeepTheirOrderAndRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		if got := bytes.Compare(tuple.AppendUint(nil, a), tuple.AppendUint(nil, b)); got != cmp.Compare(a, b) {
			t.Fatalf("uint %d %d: %d", a, b, got)
		}
		if got := bytes.Compare(tuple.AppendDesc(nil, a), tuple.AppendDesc(nil, b)); got != cmp.Compare(b, a) {
			t.Fatalf("desc %d %d: %d", a, b, got)
		}
		i, j := int64(a), int64(b)
		if got := bytes.Compare(tuple.AppendInt(nil, i), tuple.AppendInt(nil, j)); got != cmp.Compare(i, j) {
			t.Fatalf("int %d %d: %d", i, j, got)
		}
		if v, rest, ok := tuple.TakeUint(tuple.AppendUint(nil, a)); v != a || len(rest) != 0 || !ok {
			t.Fatalf("uint %d: %d", a, v)
		}
		if v, _, ok := tuple.TakeDesc(tuple.AppendDesc(nil, a)); v != a || !ok {
			t.Fatalf("desc %d: %d", a, v)
		}
		if v, _, ok := tuple.TakeInt(tuple.AppendInt(nil, i)); v != i || !ok {
			t.Fatalf("int %d: %d", i, v)
		}
	})
}

func TestPrefixEndBoundsExactlyThePrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix, key := awkward().Draw(t, "prefix"), awkward().Draw(t, "key")
		end := tuple.PrefixEnd(prefix)
		inside := bytes.Compare(key, prefix) >= 0 && (end == nil || bytes.Compare(key, end) < 0)
		if inside != bytes.HasPrefix(key, prefix) {
			t.Fatalf("key %x, prefix %x, end %x: inside %v", key, prefix, end, inside)
		}
	})
}

func TestDamagedStringsAreRefused(t *testing.T) {
	for _, b := range [][]byte{nil, {'a'}, {'a', 0}, {'a', 0, 7}, {0, 0xff}} {
		if _, _, ok := tuple.TakeString(b); ok {
			t.Errorf("%x was taken for a string", b)
		}
	}
}
