package dc_test

import (
	"strings"
	"testing"

	"missingos/srv/dc"
)

func TestParseFence(t *testing.T) {
	long := strings.Repeat("l", dc.MaxFenceLockBytes)
	for _, test := range []struct {
		in   string
		want dc.Fence
	}{
		{"17@election/leader", dc.Fence{Lock: "election/leader", Token: 17}},
		{"17@election/leader\n", dc.Fence{Lock: "election/leader", Token: 17}},
		{"17@/election/leader/", dc.Fence{Lock: "election/leader", Token: 17}},
		{"17@election%2Fleader", dc.Fence{Lock: "election/leader", Token: 17}},
		{"17@a/100%25", dc.Fence{Lock: "a/100%25", Token: 17}}, // a path is taken as it is
		{"1@a@b", dc.Fence{Lock: "a@b", Token: 1}},
		{"18446744073709551615@" + long, dc.Fence{Lock: long, Token: 1<<64 - 1}},
	} {
		got, err := dc.ParseFence(test.in)
		if err != nil || got != test.want {
			t.Errorf("%q: %+v, %v; want %+v", test.in, got, err, test.want)
		}
		if again, err := dc.ParseFence(got.String()); err != nil || again != got {
			t.Errorf("%q, written as %q, is read as %+v, %v", test.in, got, again, err)
		}
	}
	for _, bad := range []string{"", "17", "@l", "0@l", "-1@l", "x@l", "17@", "17@/", "18446744073709551616@l", "17 @l", "17@" + long + "l"} {
		if f, err := dc.ParseFence(bad); err == nil || dc.KindOf(err) != dc.Invalid {
			t.Errorf("%.40q: %+v, %v; want EINVAL", bad, f, err)
		}
	}
}
