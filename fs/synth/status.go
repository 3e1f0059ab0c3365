package synth

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// A Pair is one line of a status file: `key value`. A key may come several times (one line each; a JSON array).
// Value is a string, number, bool, time.Time (shown as RFC 3339 UTC), time.Duration, []string (joined by spaces; a JSON
// array), fmt.Stringer or error; nil is an empty value (JSON null).
type Pair struct {
	Key   string
	Value any
}

// Status is a read-only file F of `key value` lines and its twin F.json, an object with the same keys in the same order. Both have the
// size that their content has now. key is F's; the twin's is key + ".json".
func Status(key string, pairs func(ctx context.Context) ([]Pair, error)) (text, twin File) {
	text = Value(key, ValueSpec{Read: func(ctx context.Context) ([]byte, error) {
		ps, err := pairs(ctx)
		if err != nil {
			return nil, err
		}
		return StatusText(ps), nil
	}})
	twin = Value(key+".json", ValueSpec{Read: func(ctx context.Context) ([]byte, error) {
		ps, err := pairs(ctx)
		if err != nil {
			return nil, err
		}
		return StatusJSON(ps), nil
	}})
	return text, twin
}

// StatusFiles gives the two files of [Status] as children for [Static]: name and name.json.
func StatusFiles(name, key string, pairs func(ctx context.Context) ([]Pair, error)) []Named {
	text, twin := Status(key, pairs)
	return []Named{{Name: name, Node: text}, {Name: name + ".json", Node: twin}}
}

// StatusText is the text form of pairs.
func StatusText(pairs []Pair) []byte {
	var b bytes.Buffer
	for _, p := range pairs {
		b.WriteString(p.Key)
		if text := pairText(p.Value); text != "" {
			b.WriteByte(' ')
			b.WriteString(strings.ReplaceAll(text, "\n", " "))
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// StatusJSON is the JSON form of pairs: one object, one line.
func StatusJSON(pairs []Pair) []byte {
	values := make(map[string][]any)
	var keys []string
	for _, p := range pairs {
		if _, ok := values[p.Key]; !ok {
			keys = append(keys, p.Key)
		}
		values[p.Key] = append(values[p.Key], pairJSON(p.Value))
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i, k := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(jsonOf(k))
		b.WriteByte(':')
		if v := values[k]; len(v) == 1 {
			b.Write(jsonOf(v[0]))
		} else {
			b.Write(jsonOf(v))
		}
	}
	b.WriteString("}\n")
	return b.Bytes()
}

func pairText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.UTC().Format(time.RFC3339)
	case []string:
		return strings.Join(v, " ")
	case float64:
		return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00")
	default:
		return fmt.Sprint(v)
	}
}

func pairJSON(v any) any {
	switch v := v.(type) {
	case time.Time:
		if v.IsZero() {
			return nil
		}
		return pairText(v)
	case time.Duration, error, fmt.Stringer:
		return pairText(v)
	case []string:
		if v == nil {
			return []string{}
		}
	}
	return v
}

// jsonOf is v as JSON; what JSON cannot hold (NaN, a channel) is shown as a string.
func jsonOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		b, _ = json.Marshal(fmt.Sprint(v))
	}
	return b
}
