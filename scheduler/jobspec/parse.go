package jobspec

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"missingos/srv/dc"
)

// at is where in a spec something stands.
type at struct{ line, column int }

func (a at) String() string {
	if a.column > 0 {
		return fmt.Sprintf("line %d, column %d", a.line, a.column)
	}
	return fmt.Sprintf("line %d", a.line)
}

func refuse(where at, format string, args ...any) error {
	return dc.Errorf(dc.Invalid, "job.parse", "", "%s: %s", where, fmt.Sprintf(format, args...))
}

// Parse reads a script with directives (it begins with #!) or YAML. The error is a dc.Invalid that names the line, or dc.TooLarge for a text over
// dc.MaxSpecBytes.
func Parse(text []byte) (*Spec, error) {
	if len(text) > dc.MaxSpecBytes {
		return nil, dc.Errorf(dc.TooLarge, "job.parse", "", "a spec of %d bytes exceeds the limit of %d KiB (MaxSpecBytes); keep large scripts and data in /dc/data", len(text), dc.MaxSpecBytes/dc.KiB)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, refuse(at{line: 1}, "the spec is empty: write a script that begins with #!, or YAML")
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return nil, refuse(at{line: 1}, "the spec holds a NUL byte: it is neither a script nor YAML")
	}
	s := &Spec{Type: Batch, Count: 1, CPUMilli: DefaultCPUMilli, MemoryBytes: DefaultMemory, Env: map[string]string{}, Priority: 50}
	var err error
	if bytes.HasPrefix(text, []byte("#!")) {
		err = s.parseScript(string(text))
	} else {
		err = s.parseYAML(text)
	}
	if err != nil {
		return nil, err
	}
	return s, s.check()
}

// parseScript reads `#dc key=value ...` lines from the comments at the head of a script.
func (s *Spec) parseScript(text string) error {
	s.Script = text
	line := 0
	for l := range strings.Lines(text) {
		line++
		l = strings.TrimRight(l, "\r\n")
		rest, ok := strings.CutPrefix(l, "#dc")
		if !ok || rest != "" && rest[0] != ' ' && rest[0] != '\t' {
			if l != "" && !strings.HasPrefix(l, "#") {
				return nil // directives end where the script begins
			}
			continue
		}
		words, err := directiveWords(at{line: line}, rest)
		if err != nil {
			return err
		}
		for _, w := range words {
			key, value, ok := strings.Cut(w, "=")
			if !ok {
				return refuse(at{line: line}, "%q is not KEY=VALUE", w)
			}
			if err := s.set(at{line: line}, key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// directiveWords splits at white space; a value may be in single or double quotes.
func directiveWords(where at, s string) ([]string, error) {
	var words []string
	var word strings.Builder
	quote, inside := rune(0), false
	for _, r := range s {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inside = r, true
		case r == '#' && !inside:
			return append(words, take(&word, &inside)...), nil
		case r == ' ' || r == '\t':
			words = append(words, take(&word, &inside)...)
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	if quote != 0 {
		return nil, refuse(where, "a quote %c is not closed", quote)
	}
	return append(words, take(&word, &inside)...), nil
}

func take(word *strings.Builder, inside *bool) []string {
	if !*inside {
		return nil
	}
	w := word.String()
	word.Reset()
	*inside = false
	return []string{w}
}

// set sets one key that both forms have, from its text.
func (s *Spec) set(where at, key, value string) error {
	setter, ok := setters[key]
	if !ok {
		return unknownKey(where, key)
	}
	if err := setter(s, value); err != nil {
		return refuse(where, "%s: %v", key, err)
	}
	return nil
}

// setters hold the keys of a spec that have a scalar value.
var setters = map[string]func(s *Spec, v string) error{
	"name":   func(s *Spec, v string) error { s.Name = v; return nil },
	"type":   func(s *Spec, v string) error { s.Type = v; return nil },
	"count":  func(s *Spec, v string) (err error) { s.Count, err = parseInt(v, 1, MaxTasks, "MaxTasks"); return err },
	"array":  setArray,
	"cpu":    setCPU,
	"memory": setMemory,
	"mem":    setMemory,
	"time":   setTime,
	"retries": func(s *Spec, v string) (err error) {
		s.Retries, err = parseInt(v, 0, MaxRetries, "MaxRetries")
		return err
	},
	"priority":    func(s *Spec, v string) (err error) { s.Priority, err = parseInt(v, 0, 100, ""); return err },
	"constraint":  addConstraint,
	"constraints": addConstraints,
	"env":         setEnvWord,
}

// structured are the keys that YAML gives as a list or mapping.
var structured = map[string]func(s *Spec, n *yaml.Node) error{
	"command":     setCommandYAML,
	"env":         setEnvYAML,
	"constraints": setConstraintsYAML,
}

// later are keys of the contract that this release does not act on. Accepting them silently would promise what is not done.
var later = []string{
	"image", "disk", "gpu", "ports", "spread", "preemptible", "health", "update", "restart", "after", "schedule", "mounts", "together",
}

func unknownKey(where at, key string) error {
	if slices.Contains(later, key) {
		return refuse(where, "%s is not supported yet; leave it out", key)
	}
	known := slices.Sorted(maps.Keys(setters))
	known = append(known, "command")
	if best := nearest(key, known); best != "" {
		return refuse(where, "unknown key %q; did you mean %q?", key, best)
	}
	return refuse(where, "unknown key %q; known are %s", key, strings.Join(known, " "))
}

// nearest gives the word within two edits of key, or "".
func nearest(key string, words []string) string {
	best, least := "", 3
	for _, w := range words {
		if d := distance(key, w); d < least {
			best, least = w, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func parseInt(v string, least, most int, limit string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", v)
	}
	if n < least || n > most {
		if limit != "" {
			limit = " (" + limit + ")"
		}
		return 0, fmt.Errorf("%d is not between %d and %d%s", n, least, most, limit)
	}
	return n, nil
}

// setArray reads "0-99": tasks are numbered from 0, so the range begins there.
func setArray(s *Spec, v string) error {
	from, to, ok := strings.Cut(v, "-")
	if !ok || from != "0" {
		return fmt.Errorf("%q is not 0-N; tasks are numbered from 0", v)
	}
	last, err := parseInt(to, 0, MaxTasks-1, "MaxTasks - 1")
	s.Count = last + 1
	return err
}

func setCPU(s *Spec, v string) error {
	cores, err := strconv.ParseFloat(v, 64)
	if err != nil || cores < 0.001 || cores*1000 > MaxCPUMilli {
		return fmt.Errorf("%q is not a number of cores between 0.001 and %d", v, MaxCPUMilli/1000)
	}
	s.CPUMilli = int(cores*1000 + 0.5)
	return nil
}

func setMemory(s *Spec, v string) error {
	n, err := ParseSize(v)
	if err == nil && (n < dc.MiB || n > MaxMemory) {
		err = fmt.Errorf("%q is not between 1M and %dT", v, MaxMemory>>40)
	}
	s.MemoryBytes = n
	return err
}

// ParseSize reads bytes with an optional K, M, G or T (powers of 1024).
func ParseSize(v string) (int64, error) {
	digits, unit := v, int64(1)
	if i := strings.IndexAny(v, "KMGTkmgt"); i >= 0 {
		switch rest := strings.ToUpper(v[i:]); rest {
		case "K", "KB", "KIB":
			unit = 1 << 10
		case "M", "MB", "MIB":
			unit = 1 << 20
		case "G", "GB", "GIB":
			unit = 1 << 30
		case "T", "TB", "TIB":
			unit = 1 << 40
		default:
			return 0, fmt.Errorf("%q is not a size: 64M, 1G", v)
		}
		digits = v[:i]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > MaxMemory/unit {
		return 0, fmt.Errorf("%q is not a size: 64M, 1G", v)
	}
	return n * unit, nil
}

func setTime(s *Spec, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < time.Second || d > MaxTime {
		return fmt.Errorf("%q is not a duration between 1s and %dh", v, int(MaxTime.Hours()))
	}
	s.Time = d
	return nil
}

func addConstraint(s *Spec, v string) error {
	op, i := Equal, strings.Index(v, Equal)
	if i < 0 {
		op, i = NotEqual, strings.Index(v, NotEqual)
	}
	if i < 0 {
		return fmt.Errorf("%q is not LABEL == VALUE or LABEL != VALUE", v)
	}
	c := Constraint{Label: strings.TrimSpace(v[:i]), Op: op, Value: strings.TrimSpace(v[i+2:])}
	if !labelForm.MatchString(c.Label) {
		return fmt.Errorf("%q is not a label", c.Label)
	}
	s.Constraints = append(s.Constraints, c)
	return nil
}

func addConstraints(s *Spec, v string) error {
	for c := range strings.SplitSeq(v, ",") {
		if err := addConstraint(s, c); err != nil {
			return err
		}
	}
	return nil
}

func setEnvWord(s *Spec, v string) error {
	name, value, ok := strings.Cut(v, "=")
	if !ok || !envForm.MatchString(name) {
		return fmt.Errorf("%q is not NAME=VALUE", v)
	}
	s.Env[name] = value
	return nil
}

// check looks at what no single key can tell.
func (s *Spec) check() error {
	whole := func(format string, args ...any) error {
		return dc.Errorf(dc.Invalid, "job.parse", "", format, args...)
	}
	switch {
	case s.Name != "" && (len(s.Name) > MaxNameLength || !nameForm.MatchString(s.Name)):
		return whole("name %q: up to %d small letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit", s.Name, MaxNameLength)
	case reserved[s.Name]:
		return whole("name %q is taken by a file of /dc/jobs", s.Name)
	case s.Type != Batch && s.Type != Service:
		return whole("type %q: batch or service (system and cron are not supported yet)", s.Type)
	case s.Script == "" && len(s.Command) == 0:
		return whole("there is neither a command nor a script to run")
	case s.Script != "" && len(s.Command) > 0:
		return whole("a spec has a command or a script, not both")
	case len(s.Env) > MaxEnv:
		return whole("%d variables in env exceed the limit of %d (MaxEnv)", len(s.Env), MaxEnv)
	}
	return nil
}
