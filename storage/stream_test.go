package storage

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

// oldHistory is what the stream in testdata/snapshot-1 holds. It was written by the version of this package that knew format 1 only.
func oldHistory() []Entry {
	var all []Entry
	for i := 1; i <= 40; i++ {
		all = append(all, entry(i, fmt.Sprintf("big k%d %d", i%13, i*97), "add n 1", fmt.Sprintf("set s%d v%d", i, i)))
	}
	return append(all, entry(41, "big large 300000", "clear s1"))
}

// A replica of the earlier version serves one of this version, and is served by it.
func TestStreamsOfTheEarlierVersion(t *testing.T) {
	old, err := os.ReadFile("testdata/snapshot-1")
	if err != nil {
		t.Fatal(err)
	}
	from := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, from)
	from.Apply(oldHistory())
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	if err := to.Restore(t.Context(), 0, sending(old)); err != nil {
		t.Fatal(err)
	}
	if to.Mark() != from.Mark() || mustHash(t, to) != mustHash(t, from) {
		t.Errorf("restored %v, want %v", to.Mark(), from.Mark())
	}
	if !bytes.Equal(streamOf(t, from, 0), old) { // 0 is what it asks for: it does not know of formats
		t.Error("the stream for a replica of the earlier version is not the one it wrote itself")
	}
}

func TestFormatsOfStreams(t *testing.T) {
	from := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, from)
	from.Apply(history(60, rand.New(rand.NewPCG(1, 1))))
	for asked, want := range map[int]string{0: "dcsnap1\n", 1: "dcsnap1\n", 2: "dcsnap2\n", 99: "dcsnap2\n"} {
		b := streamOf(t, from, asked)
		if got := string(b[:len(want)]); got != want {
			t.Errorf("asked for format %d: got %q", asked, got)
		}
		to := mustOpen(t, t.TempDir(), testConfig(t))
		if err := to.Restore(t.Context(), 0, sending(b)); err != nil || mustHash(t, to) != mustHash(t, from) {
			t.Errorf("format %d does not restore: %v", asked, err)
		}
		mustClose(t, to)
	}
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	if err := to.Restore(t.Context(), 0, sending([]byte("dcsnap3\nxxxxxxxxxxxxxxxx"))); err == nil || to.Applied() != 0 {
		t.Errorf("a stream of an unknown format: %v", err)
	}
}

// BenchmarkPack packs frames of rows as a table of small JSON values has them.
func BenchmarkPack(b *testing.B) {
	dice := rand.New(rand.NewPCG(1, 1))
	payload := []byte{'r'}
	for i := 0; len(payload) < frameBytes; i++ {
		payload = append(appendBytes(payload, fmt.Sprintf("users/%08d", i*7)), 0)
		payload = appendBytes(payload, fmt.Sprintf(`{"id":%d,"name":"user-%x","city":"town %d","seen":%d}`, i, dice.Uint64(), dice.IntN(500), 1_700_000_000+dice.IntN(1_000_000)))
	}
	for format := 1; format <= SnapshotFormat; format++ {
		b.Run(fmt.Sprintf("format=%d", format), func(b *testing.B) {
			p := newPacker(format)
			var buf []byte
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				buf = p.pack(buf, payload)
			}
			b.ReportMetric(float64(len(payload))/float64(len(buf)), "ratio")
		})
	}
}
