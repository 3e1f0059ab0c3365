package transport

import (
	"testing"
	"testing/synctest"
	"time"
)

// A heartbeat waits for the pulse, but for one that has just missed it.
func TestHeartbeatsWaitForThePulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{Gather: 150 * time.Millisecond, Pulse: 750 * time.Millisecond})
		for _, c := range []struct{ at, want time.Duration }{
			{10, 150}, {290, 150}, {300, 450}, {600, 150}, {749, 1}, {760, 150}, {1100, 400},
		} {
			time.Sleep(c.at*time.Millisecond - time.Since(tr.began))
			if got := tr.untilBeat(); got != c.want*time.Millisecond {
				t.Errorf("%v after the start: got %v, want %v", c.at*time.Millisecond, got, c.want*time.Millisecond)
			}
		}
		if got := New(Config{Gather: time.Second}).untilBeat(); got != time.Second {
			t.Errorf("without a pulse: got %v", got)
		}
	})
}
