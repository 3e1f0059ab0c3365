package jobspec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"missingos/srv/dc"
)

// parseYAML reads a mapping of keys.
func (s *Spec) parseYAML(text []byte) error {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		// yaml's own words begin with "yaml: line N:"
		return dc.Errorf(dc.Invalid, "job.parse", "", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return refuse(at{line: max(more.Line, 1)}, "a second document; submit one spec at a time")
	}
	m := doc.Content[0]
	if m.Kind != yaml.MappingNode {
		return refuse(at{m.Line, m.Column}, "a spec is KEY: VALUE lines, or a script that begins with #!")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		where := at{k.Line, k.Column}
		if seen[k.Value] {
			return refuse(where, "%s is there twice", k.Value)
		}
		seen[k.Value] = true
		if err := s.setYAML(where, k.Value, v); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spec) setYAML(where at, key string, v *yaml.Node) error {
	set, ok := structured[key]
	if ok && (v.Kind != yaml.ScalarNode || key == "command") {
		if err := set(s, v); err != nil {
			return refuse(where, "%s: %v", key, err)
		}
		return nil
	}
	if v.Kind != yaml.ScalarNode {
		if _, known := setters[key]; !known {
			return unknownKey(where, key)
		}
		return refuse(at{v.Line, v.Column}, "%s: want a single value", key)
	}
	return s.set(where, key, v.Value)
}

func setCommandYAML(s *Spec, n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		s.Command = []string{"/bin/sh", "-c", n.Value}
		return nil
	}
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		return errors.New(`want a list of words, ["program", "argument"], or one line for the shell`)
	}
	for _, w := range n.Content {
		if w.Kind != yaml.ScalarNode {
			return errors.New("want a list of words")
		}
		s.Command = append(s.Command, w.Value)
	}
	return nil
}

func setEnvYAML(s *Spec, n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return errors.New("want NAME: VALUE lines")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i+1].Kind != yaml.ScalarNode {
			return fmt.Errorf("%s: want a single value", n.Content[i].Value)
		}
		if err := setEnvWord(s, n.Content[i].Value+"="+n.Content[i+1].Value); err != nil {
			return err
		}
	}
	return nil
}

func setConstraintsYAML(s *Spec, n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return errors.New(`want a list, [arch == amd64, rack != r1]`)
	}
	for _, c := range n.Content {
		if err := addConstraint(s, c.Value); err != nil {
			return err
		}
	}
	return nil
}

// Canonical writes s so that Parse gives it back: a script as it is with its directives, anything else as YAML with all keys in a fixed order.
func (s *Spec) Canonical() []byte {
	if s.Script != "" {
		return []byte(s.Script)
	}
	var b bytes.Buffer
	line := func(key, value string) { fmt.Fprintf(&b, "%s: %s\n", key, value) }
	if s.Name != "" {
		line("name", s.Name)
	}
	line("type", s.Type)
	line("count", strconv.Itoa(s.Count))
	words := make([]string, len(s.Command))
	for i, w := range s.Command {
		words[i] = strconv.Quote(w)
	}
	line("command", "["+strings.Join(words, ", ")+"]")
	line("cpu", strconv.FormatFloat(float64(s.CPUMilli)/1000, 'f', -1, 64))
	line("memory", strconv.FormatInt(s.MemoryBytes, 10))
	if s.Time > 0 {
		line("time", s.Time.String())
	}
	line("retries", strconv.Itoa(s.Retries))
	line("priority", strconv.Itoa(s.Priority))
	if len(s.Env) > 0 {
		b.WriteString("env:\n")
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			fmt.Fprintf(&b, "  %s: %s\n", k, strconv.Quote(s.Env[k]))
		}
	}
	if len(s.Constraints) > 0 {
		b.WriteString("constraints:\n")
		for _, c := range s.Constraints {
			fmt.Fprintf(&b, "  - %s\n", strconv.Quote(c.String()))
		}
	}
	return b.Bytes()
}
