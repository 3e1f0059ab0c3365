package storage

import (
	"fmt"
	"testing"

	"missingos/srv/dc"
	"missingos/storage/command"
)

// BenchmarkApply applies entries of n commands of one client, each a row of 128 bytes.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("commands=%d", n), func(b *testing.B) {
			cfg := testConfig(b)
			cfg.MemTableBytes = 0
			s := mustOpen(b, b.TempDir(), cfg)
			defer mustClose(b, s)
			seq, index := uint64(0), dc.Index(0)
			b.ReportAllocs()
			for b.Loop() {
				index++
				e := Entry{Index: index, Term: 1, Clock: 1_000_000}
				for range n {
					seq++
					id := dc.RequestID{Client: 7, Seq: seq, Done: max(1, seq-min(seq, uint64(n))), Issued: 1_000_000}
					e.Commands = append(e.Commands, command.Encode(id, fmt.Appendf(nil, "big k%d 128", seq%100_000)))
				}
				s.Apply([]Entry{e})
			}
			b.ReportMetric(float64(seq)/b.Elapsed().Seconds(), "commands/s")
		})
	}
}

// BenchmarkView reads one row a view.
func BenchmarkView(b *testing.B) {
	s := mustOpen(b, b.TempDir(), testConfig(b))
	defer mustClose(b, s)
	for i := range 1000 {
		s.Apply([]Entry{entry(i+1, fmt.Sprintf("big k%d 128", i))})
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		key := fmt.Appendf(nil, "k%d", i%1000)
		_ = s.View(func(r Reader) error { r.Get(key); return nil })
	}
}
