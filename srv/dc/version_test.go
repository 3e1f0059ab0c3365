package dc

import "testing"

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		old, new string
	}{
		{"0.1.9", "0.2.0"}, {"0.2.0", "0.10.0"}, {"v1.2.3-rc1", "1.2.4"}, {"1.9.9", "2.0.0"},
	} {
		a, okA := ParseVersion(tt.old)
		b, okB := ParseVersion(tt.new)
		if !okA || !okB || !a.Before(b) || b.Before(a) || a.Before(a) {
			t.Errorf("%s (%v, %v) should be before %s (%v, %v)", tt.old, a, okA, tt.new, b, okB)
		}
	}
	for _, s := range []string{"", "dev", "1.2", "1.-2.3", "a.b.c"} {
		if v, ok := ParseVersion(s); ok {
			t.Errorf("%q is read as %s", s, v)
		}
	}
}
