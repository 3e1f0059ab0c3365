package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{"": 0, "4096": 4096, "64K": 64 << 10, "500M": 500 << 20, "2G": 2 << 30, "1T": 1 << 40, "10MB": 10 << 20} {
		if got, err := parseSize("--reserve", in); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"-1", "x", "5Q", "0", "99999999T", "1.5G"} {
		if got, err := parseSize("--reserve", bad); err == nil {
			t.Errorf("%q: got %d, want an error", bad, got)
		}
	}
}

func TestExitStatuses(t *testing.T) {
	tests := []struct {
		args   []string
		status int
		says   string // on standard error or output
	}{
		{nil, 2, "usage:"},
		{[]string{"help"}, 0, "usage:"},
		{[]string{"version"}, 0, "dcd dev"},
		{[]string{"fly"}, 2, `unknown command "fly"`},
		{[]string{"run", "--wings"}, 2, "wings"},
		{[]string{"run", "extra"}, 2, "extra"},
		{[]string{"run", "--reserve", "lots"}, 2, "lots"},
		{[]string{"run", "--snapshot-rate", "0"}, 2, "--snapshot-rate 0"},
		{[]string{"join", "--dir", "DIR"}, 2, "--token"},
		{[]string{"join", "--dir", "DIR", "--token", "abc"}, 1, "no join token"},
		{[]string{"run", "--dir", "DIR", "--no-mount"}, 1, "dcd init"},
	}
	for _, tt := range tests {
		args := append([]string(nil), tt.args...)
		for i, a := range args {
			if a == "DIR" {
				args[i] = t.TempDir()
			}
		}
		var out, err bytes.Buffer
		if got := run(args, &out, &err); got != tt.status || !strings.Contains(out.String()+err.String(), tt.says) {
			t.Errorf("dcd %v: status %d, said %q%q; want %d and %q", tt.args, got, out.String(), err.String(), tt.status, tt.says)
		}
	}
}

func TestEnvironmentStandsInForFlags(t *testing.T) {
	t.Setenv("DCD_LISTEN", "1.2.3.4:5")
	f := newFlags("run", &bytes.Buffer{})
	if err := f.parse([]string{"--dir", "d"}); err != nil || f.listen != "1.2.3.4:5" {
		t.Errorf("got %q, %v", f.listen, err)
	}
	f = newFlags("run", &bytes.Buffer{})
	if err := f.parse([]string{"--listen", "x:1"}); err != nil || f.listen != "x:1" {
		t.Errorf("the flag does not win: %q, %v", f.listen, err)
	}
}
