package storage

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
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

// BenchmarkRestore moves a state of 64 MiB, in rows of 1 KiB, from one shard to another: held, packed, received, built and put in place.
func BenchmarkRestore(b *testing.B) {
	cfg := testConfig(b)
	cfg.MemTableBytes = 0
	from := mustOpen(b, b.TempDir(), cfg)
	defer mustClose(b, from)
	dice := rand.New(rand.NewPCG(1, 1))
	const rows, perEntry = 64 << 10, 128
	for i := range rows / perEntry {
		e := entry(i + 1)
		for k := range perEntry {
			var v strings.Builder
			for v.Len() < 1000 {
				fmt.Fprintf(&v, `{"id":%d,"seen":%d},`, dice.IntN(1e6), dice.IntN(1e9))
			}
			e.Commands = append(e.Commands, command.Encode(dc.RequestID{}, fmt.Appendf(nil, "set k%08d %s", i*perEntry+k, v.String())))
		}
		from.Apply([]Entry{e})
	}
	b.SetBytes(rows * 1000)
	for b.Loop() {
		to := mustOpen(b, b.TempDir(), cfg)
		sent := 0
		err := to.Restore(b.Context(), 1, func(ctx context.Context, p Pull) (io.ReadCloser, error) {
			h, err := from.Hold(p.At, 1)
			if err != nil {
				return nil, err
			}
			r, w := io.Pipe()
			go func() {
				defer h.Release()
				_ = w.CloseWithError(h.WriteSnapshot(ctx, p, counter{w, &sent}))
			}()
			return r, nil
		})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(sent)/(1<<20), "MiB-sent")
		mustClose(b, to)
	}
}

// counter counts what is written.
type counter struct {
	io.Writer
	n *int
}

func (c counter) Write(p []byte) (int, error) {
	*c.n += len(p)
	return c.Writer.Write(p)
}
