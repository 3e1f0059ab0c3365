package kvfs

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"missingos/srv/client"
	"missingos/srv/dc"
)

func TestNamesRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		segment := rapid.StringMatching(`[a%0-5EF.\x00]{1,8}`).Draw(rt, "segment")
		name := nameOf(segment)
		if got := segmentOf(name); got != segment {
			rt.Fatalf("%q became %q, then %q", segment, name, got)
		}
		if strings.ContainsRune(name, 0) || name == "." || name == ".." || name == controlName {
			rt.Fatalf("%q became %q, which cannot be a name", segment, name)
		}
	})
}

func TestRequests(t *testing.T) {
	if r, err := parseScan([]byte(`prefix="a b" limit=3 reverse format=tsv`)); err != nil || r.Prefix != "a b" || r.Limit != 3 || !r.Reverse || !r.tsv {
		t.Errorf("got %+v, %v", r, err)
	}
	for _, bad := range []string{"limit=x", "format=xml", "whatever", `from="open`} {
		if _, err := parseScan([]byte(bad)); !errors.Is(err, dc.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "[]", `{"do":[{}]}`, `{"do":[{"put":"a","delete":"b"}]}`, `{"if":[{}]}`, `{"unless":[]}`} {
		if _, _, err := parseTxn([]byte(bad)); !errors.Is(err, dc.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for line, want := range map[string]client.KVPair{
		"k\tv":                               {Key: "k", Value: []byte("v")},
		`k\tq` + "\t" + `a\nb`:               {Key: "k\tq", Value: []byte("a\nb")},
		`{"key":"k","value":"v"}`:            {Key: "k", Value: []byte("v")},
		`{"key":"k","value64":"/w==","x":1}`: {Key: "k", Value: []byte{0xff}},
	} {
		got, err := parseLine([]byte(line))
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%q: %s", line, diff)
		}
	}
	p := client.KVPair{Key: "a\tb", Value: []byte("x\ny\n")}
	back, err := parseLine([]byte(strings.TrimSuffix(string(appendTSV(nil, p, false)), "\n")))
	if err != nil || back.Key != p.Key || string(back.Value) != "x\ny" {
		t.Errorf("tsv round trip: %+v, %v", back, err)
	}
}
