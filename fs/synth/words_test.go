package synth

import (
	"testing"
	"time"
)

func TestDurations(t *testing.T) {
	const most = 1000 * 24 * time.Hour
	for word, want := range map[string]time.Duration{
		"unlimited": 0, "7d": 168 * time.Hour, "1000d": most, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute, "1ms": time.Millisecond,
	} {
		if got, err := Duration(word, most); err != nil || got != want {
			t.Errorf("%s: %v %v", word, got, err)
		}
	}
	for _, word := range []string{"", "7", "0s", "0d", "-1d", "-3h", "1001d", "99999999999d", "1.5d", "1us", "d", "forever"} {
		if got, err := Duration(word, most); err == nil {
			t.Errorf("%q is taken for %v", word, got)
		}
	}
}
