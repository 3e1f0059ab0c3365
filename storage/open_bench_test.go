package storage

import "testing"

// BenchmarkTakeDown is what the first use of a shelved shard waits for, and the putting away after it.
func BenchmarkTakeDown(b *testing.B) {
	s := mustOpen(b, b.TempDir(), shelfConfig(b))
	defer mustClose(b, s)
	s.Apply([]Entry{entry(1, "set a 1")})
	for b.Loop() {
		putOnShelf(b, s)
		value(b, s, "a")
	}
}

// BenchmarkFirstUse is the same of a new shard.
func BenchmarkFirstUse(b *testing.B) {
	for b.Loop() {
		s := mustOpen(b, b.TempDir(), shelfConfig(b))
		value(b, s, "a")
		mustClose(b, s)
	}
}
