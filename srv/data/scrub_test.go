package data_test

import (
	"context"
	"testing"
	"time"

	"missingos/srv/data/datatest"
)

func TestAScrubFindsWhatNobodyReads(t *testing.T) {
	c := datatest.New(t, 3, datatest.Care(-1))
	a := create(t, c, "f")
	var bad [][]byte
	for i := range 5 {
		p := noise(uint64(i), 100_000)
		write(t, c, 1, a.Ino, int64(i)*100_000, p)
		bad = append(bad, p)
	}
	l := write(t, c, 1, a.Ino, 0, bad[0])
	flip(t, c, 2, bad[3])
	if n, err := c.Blocks(2).Scrub(t.Context(), 2, time.Millisecond); n != 1 || err != nil {
		t.Fatalf("%d bad copies found, %v", n, err)
	}
	wait(t, "the copy is mended", func() bool {
		n, err := c.Blocks(2).Scrub(t.Context(), 2, time.Millisecond)
		return n == 0 && err == nil
	})
	if !isOn(t, c, l.Block, 3) {
		t.Fatal("not on three nodes")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Blocks(1).Scrub(ctx, 1, time.Hour); err == nil {
		t.Fatal("a scrub that takes an hour was through at once")
	}
}
