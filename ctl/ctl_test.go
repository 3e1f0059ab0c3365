package ctl

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// run runs dcctl in process on a plain directory that stands in for the mount.
func run(t *testing.T, mount, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := &Env{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Getenv: func(k string) string {
		if k == "DC_MOUNT" {
			return mount
		}
		return ""
	}}
	status = Main(t.Context(), env, args)
	return status, out.String(), errs.String()
}

func TestExitStatuses(t *testing.T) {
	m := t.TempDir()
	tests := []struct {
		name   string
		args   []string
		status int
		text   string // on either output
	}{
		{"nothing", nil, ExitUsage, "NOUN VERB"},
		{"help", []string{"help"}, ExitDone, "status"},
		{"--help", []string{"--help"}, ExitDone, "status"},
		{"help of a noun", []string{"help", "job"}, ExitDone, "job run"},
		{"help of a command", []string{"help", "job", "run"}, ExitDone, "cp FILE /dc/jobs/new"},
		{"--help of a command", []string{"job", "run", "--help"}, ExitDone, "exit status"},
		{"noun only", []string{"job"}, ExitUsage, "needs one of"},
		{"unknown noun", []string{"jib"}, ExitUsage, "there is no"},
		{"unknown verb", []string{"job", "dance"}, ExitUsage, "needs one of"},
		{"unknown flag", []string{"kv", "scan", "--nosuch", "t"}, ExitUsage, "nosuch"},
		{"missing argument", []string{"kv", "scan"}, ExitUsage, "needs one table"},
		{"no such table", []string{"kv", "ls", "t"}, ExitFailed, "no such file"},
		{"no node", []string{"--dir", m, "status"}, ExitFailed, "no node runs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, out, errs := run(t, m, "", tt.args...)
			if status != tt.status {
				t.Errorf("exit status %d, want %d\n%s%s", status, tt.status, out, errs)
			}
			if !strings.Contains(out+errs, tt.text) {
				t.Errorf("output lacks %q:\n%s%s", tt.text, out, errs)
			}
		})
	}
}

func TestFlagsStandAnywhere(t *testing.T) {
	m := t.TempDir()
	scan := filepath.Join(m, "kv/users/.dc/scan")
	if err := os.MkdirAll(filepath.Dir(scan), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"kv", "scan", "--limit", "3", "users"},
		{"kv", "scan", "users", "--limit", "3"},
		{"--mount", m, "kv", "scan", "users", "--limit=3"},
	} {
		if err := os.WriteFile(scan, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if status, _, errs := run(t, m, "", args...); status != ExitDone {
			t.Fatalf("%v: %s", args, errs)
		}
		b, err := os.ReadFile(scan)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "limit=3") || !strings.Contains(string(b), "format=json") {
			t.Errorf("%v wrote %q", args, b)
		}
	}
}

func TestErrorsOfTheTreeAreExplained(t *testing.T) {
	m := t.TempDir()
	if err := os.MkdirAll(filepath.Join(m, ".dc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m, ".dc/errors"), []byte("kv.list t: there is no table t\nolder\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, errs := run(t, m, "", "kv", "ls", "t")
	if !strings.Contains(errs, "there is no table t") || strings.Contains(errs, "older") {
		t.Errorf("got %q, want the newest line of .dc/errors and no other", errs)
	}
	if _, out, _ := run(t, m, "", "why", "2"); out != "kv.list t: there is no table t\nolder\n" {
		t.Errorf("why 2 printed %q", out)
	}
}

func TestPublishAppendsLines(t *testing.T) {
	m := t.TempDir()
	log := filepath.Join(m, "topics/orders/log")
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, m, "", "topic", "publish", "orders", "order 1")
	run(t, m, "order 2\norder 3\n", "topic", "publish", "orders")
	got, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), "order 1\norder 2\norder 3\n"); diff != "" {
		t.Error(diff)
	}
}

func TestEveryCommandHasHelpThatSaysHow(t *testing.T) {
	for _, c := range Commands() {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s lacks a short text or an example", c.Name())
		}
		if strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: the short text ends in a full stop", c.Name())
		}
	}
}

func TestManPagesAreUpToDate(t *testing.T) {
	dir := t.TempDir()
	if status, _, errs := run(t, dir, "", "help", "--man", dir); status != ExitDone {
		t.Fatal(errs)
	}
	b, err := os.ReadFile(filepath.Join(dir, "dcctl.1.md"))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("../docs/man/dcctl.1.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != string(kept) {
		t.Error("docs/man/dcctl.1.md is not what the commands' help says now; run make gen")
	}
}

func TestSizesAreReadable(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1024: "1.0KiB", 5 << 30: "5.0GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
