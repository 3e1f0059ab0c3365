package dc

import (
	"fmt"
	"strconv"
	"strings"
)

// A Version is what a node runs: major, minor, patch.
type Version [3]int

// ParseVersion reads major.minor.patch, with or without a v in front and a suffix behind. Anything else, as builds without a version have, is
// not ok: it counts as the newest.
func ParseVersion(s string) (v Version, ok bool) {
	parts := strings.SplitN(strings.SplitN(strings.TrimPrefix(s, "v"), "-", 2)[0], ".", 3)
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, false
		}
		v[i] = n
	}
	return v, len(parts) == 3
}

// Before tells whether v is older than o.
func (v Version) Before(o Version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }
