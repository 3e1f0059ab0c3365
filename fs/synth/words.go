package synth

import (
	"strconv"
	"strings"
	"time"

	"missingos/srv/dc"
)

// Duration reads a word of a control file: 7d, 12h, 90m, 1h30m, or unlimited, which is 0. It is a millisecond at least and max at most.
func Duration(word string, max time.Duration) (time.Duration, error) {
	if word == "unlimited" {
		return 0, nil
	}
	d, err := time.ParseDuration(word)
	if days, ok := strings.CutSuffix(word, "d"); ok {
		const day = 24 * time.Hour
		var n int64
		n, err = strconv.ParseInt(days, 10, 32)
		d = time.Duration(min(n, int64(max/day)+1)) * day
	}
	if err != nil || d < time.Millisecond || d > max {
		return 0, dc.Errorf(dc.Invalid, "", "", "%q is not a duration of up to %d days; say 7d, 12h, 90s or unlimited", word, int64(max.Hours()/24))
	}
	return d, nil
}
