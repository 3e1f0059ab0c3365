package jobspec

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"missingos/srv/dc"
)

func TestScript(t *testing.T) {
	text := "#!/bin/bash\n#dc name=words array=0-99 cpu=0.5\n# a comment\n#dc memory=64M time=10m retries=2 env='GREETING=hello world'\n#dc constraint='rack != r1' # why\ngrep x\n#dc name=not-a-directive\n"
	got, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		Name: "words", Type: Batch, Count: 100, Script: text, CPUMilli: 500, MemoryBytes: 64 << 20, Time: 10 * time.Minute, Retries: 2,
		Env: map[string]string{"GREETING": "hello world"}, Constraints: []Constraint{{"rack", NotEqual, "r1"}}, Priority: 50,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}

func TestYAML(t *testing.T) {
	text := `
name: web
type: service
count: 3
command: ["/dc/data/bin/web", "-port", "80"]
cpu: 0.5
memory: 256M
env: {MODE: prod, LEVEL: 3}
constraints: [arch == amd64, rack != r1]
priority: 70
`
	got, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		Name: "web", Type: Service, Count: 3, Command: []string{"/dc/data/bin/web", "-port", "80"}, CPUMilli: 500, MemoryBytes: 256 << 20,
		Env: map[string]string{"MODE": "prod", "LEVEL": "3"}, Constraints: []Constraint{{"arch", Equal, "amd64"}, {"rack", NotEqual, "r1"}}, Priority: 70,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	again, err := Parse(got.Canonical())
	if err != nil {
		t.Fatalf("the canonical form does not parse: %v\n%s", err, got.Canonical())
	}
	if diff := cmp.Diff(again, want); diff != "" {
		t.Error(diff)
	}
}

func TestRefusalsNameTheLineAndHelp(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", " \n", "empty"},
		{"binary", "\x7fELF\x00", "NUL"},
		{"misspelt directive", "#!/bin/sh\n#dc nmae=x\n", `line 2: unknown key "nmae"; did you mean "name"?`},
		{"misspelt key", "command: [a]\nmemroy: 1G\n", `line 2, column 1: unknown key "memroy"; did you mean "memory"?`},
		{"far off", "command: [a]\nxyzzyplugh: 1\n", "known are"},
		{"later", "command: [a]\nports: {http: 0}\n", "ports is not supported yet"},
		{"no value", "#!/bin/sh\n\n#dc name\n", "line 3: \"name\" is not KEY=VALUE"},
		{"bad number", "command: [a]\ncount: many\n", "line 2, column 1: count: \"many\" is not a whole number"},
		{"too many tasks", "#!/bin/sh\n#dc count=10001\n", "MaxTasks"},
		{"bad array", "#!/bin/sh\n#dc array=1-5\n", "numbered from 0"},
		{"bad cpu", "#!/bin/sh\n#dc cpu=lots\n", "cores"},
		{"bad memory", "#!/bin/sh\n#dc memory=64Q\n", "line 2: memory"},
		{"bad time", "#!/bin/sh\n#dc time=soon\n", "duration"},
		{"bad constraint", "command: [a]\nconstraints: [rack]\n", "LABEL == VALUE"},
		{"bad name", "#!/bin/sh\n#dc name=Hello/World\n", "small letters"},
		{"taken name", "#!/bin/sh\n#dc name=new\n", "taken"},
		{"bad type", "#!/bin/sh\n#dc type=cron\n", "not supported yet"},
		{"nothing to run", "name: x\n", "neither a command nor a script"},
		{"twice", "command: [a]\ncount: 1\ncount: 2\n", "line 3, column 1: count is there twice"},
		{"not a mapping", "- a\n- b\n", "KEY: VALUE"},
		{"broken yaml", "command: [a\n", "line"},
		{"two documents", "command: [a]\n---\ncommand: [b]\n", "second document"},
		{"open quote", "#!/bin/sh\n#dc env='A=b\n", "not closed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.text))
			if !errors.Is(err, dc.Invalid) {
				t.Fatalf("got %v, want invalid", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want %q in it", err, tt.want)
			}
		})
	}
	if _, err := Parse([]byte("#!/bin/sh\n" + strings.Repeat("#", dc.MaxSpecBytes))); !errors.Is(err, dc.TooLarge) {
		t.Errorf("a huge spec: %v", err)
	}
}

func FuzzParseNeverPanicsAndCanonicalParses(f *testing.F) {
	f.Add("#!/bin/sh\n#dc name=a count=2\n")
	f.Add("command: [a]\nenv: {A: b}\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse([]byte(text))
		if err != nil {
			return
		}
		again, err := Parse(s.Canonical())
		if err != nil {
			t.Fatalf("canonical form of %q: %v\n%s", text, err, s.Canonical())
		}
		if diff := cmp.Diff(again, s); diff != "" {
			t.Fatal(diff)
		}
	})
}
