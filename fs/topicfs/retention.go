package topicfs

import (
	"strconv"
	"strings"
	"time"

	"missingos/srv/dc"
)

const day = 24 * time.Hour

// parseAge reads 7d, 12h, 90m or unlimited, which is 0.
func parseAge(args []string) (time.Duration, error) {
	word := strings.Join(args, " ")
	if word == "unlimited" {
		return 0, nil
	}
	age, err := time.ParseDuration(word)
	if days, ok := strings.CutSuffix(word, "d"); ok {
		var n int64
		n, err = strconv.ParseInt(days, 10, 32)
		age = time.Duration(min(n, int64(2*dc.MaxTopicRetention/day))) * day
	}
	if err != nil || age < time.Second || age > dc.MaxTopicRetention {
		return 0, dc.Errorf(dc.Invalid, "", "", "%q is not a duration from a second to %s; say 7d, 12h or unlimited", word, dc.MaxTopicRetention)
	}
	return age, nil
}

// parseBytes reads 4096, 64K, 500M, 10G, 2T or unlimited, which is 0.
func parseBytes(args []string) (uint64, error) {
	word := strings.Join(args, " ")
	if word == "unlimited" {
		return 0, nil
	}
	digits, shift := word, 0
	if i := strings.IndexAny(word, "KMGT"); i > 0 && i == len(word)-1 {
		digits, shift = word[:i], map[byte]int{'K': 10, 'M': 20, 'G': 30, 'T': 40}[word[i]]
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n > (1<<60)>>shift {
		return 0, dc.Errorf(dc.Invalid, "", "", "%q is not a size; say 500M, 10G or unlimited", word)
	}
	return n << shift, nil
}
