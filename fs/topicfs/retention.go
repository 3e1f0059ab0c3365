package topicfs

import (
	"strconv"
	"strings"

	"missingos/srv/dc"
)

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
