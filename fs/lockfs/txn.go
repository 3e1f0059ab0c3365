package lockfs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

const txnUsage = `# Write one JSON object, then read the answer on the same descriptor:
#   {"if":   [{"path":"a","version":3}, {"path":"b","absent":true}, {"path":"leader","fence":17}],
#    "do":   [{"put":"a","value":"x"}, {"append":"log","value":"line\n"}, {"delete":"b"}, {"mkdir":"d"}, {"get":"c"}],
#    "else": [{"get":"a"}]}
# Conditions: version, absent, present, value (or value64), fence. All changes have one revision.
# Answer: {"succeeded":true,"revision":42,"results":[{"path":"c","version":7,"value":"..."}]}; results are those of the gets.
`

type txnJSON struct {
	If   []conditionJSON `json:"if"`
	Do   []opJSON        `json:"do"`
	Else []opJSON        `json:"else"`
}

type conditionJSON struct {
	Path    *string      `json:"path"`
	Key     *string      `json:"key"` // as in /dc/kv
	Version *dc.Revision `json:"version"`
	Absent  bool         `json:"absent"`
	Present bool         `json:"present"`
	Value   *string      `json:"value"`
	Base64  *string      `json:"value64"`
	Fence   *dc.Revision `json:"fence"`
}

type opJSON struct {
	Put    *string `json:"put"`
	Append *string `json:"append"`
	Delete *string `json:"delete"`
	Mkdir  *string `json:"mkdir"`
	Get    *string `json:"get"`
	Value  *string `json:"value"`
	Base64 *string `json:"value64"`
}

type answerJSON struct {
	OK      bool         `json:"succeeded"`
	Rev     dc.Revision  `json:"revision"`
	Results []resultJSON `json:"results"`
}

type resultJSON struct {
	Path    string      `json:"path"`
	Absent  bool        `json:"absent,omitempty"`
	Dir     bool        `json:"dir,omitempty"`
	Version dc.Revision `json:"version,omitempty"`
	Value   *string     `json:"value,omitempty"`
	Base64  []byte      `json:"value64,omitempty"`
}

func txnFile(s Store, k string) synth.File {
	return synth.Clone(k, synth.CloneSpec{
		Usage: txnUsage,
		Commit: func(ctx context.Context, request []byte) (synth.Source, error) {
			t, err := parseTxn(request)
			if err != nil {
				return nil, err
			}
			r, err := s.Txn(ctx, t)
			if err != nil {
				return nil, err
			}
			return synth.Bytes(answer(r)), nil
		},
	})
}

func parseTxn(request []byte) (client.LockTxn, error) {
	var in txnJSON
	var t client.LockTxn
	d := json.NewDecoder(bytes.NewReader(request))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return t, invalid("not a transaction: %v", err)
	}
	if d.More() {
		return t, invalid("more than one JSON object")
	}
	for i, c := range in.If {
		cond, err := parseCondition(c)
		if err != nil {
			return t, dc.Wrap(err, "if", number1(i))
		}
		t.If = append(t.If, cond)
	}
	var err error
	if t.Then, err = parseOps("do", in.Do); err != nil {
		return t, err
	}
	t.Else, err = parseOps("else", in.Else)
	return t, err
}

func invalid(format string, args ...any) error {
	return dc.Errorf(dc.Invalid, "lock.txn", "", format, args...)
}

// number1 counts from one, for people.
func number1(i int) string { return string(number(dc.Revision(i + 1))) }

func parseCondition(c conditionJSON) (client.LockCondition, error) {
	path := c.Path
	if path == nil {
		path = c.Key
	}
	if path == nil {
		return client.LockCondition{}, invalid("a condition needs a path")
	}
	if c.Version == nil && !c.Absent && !c.Present && c.Value == nil && c.Base64 == nil && c.Fence == nil {
		return client.LockCondition{}, invalid("the condition on %q says nothing: want version, absent, present, value or fence", *path)
	}
	out := client.LockCondition{Path: trim(*path), Version: c.Version, Absent: c.Absent, Present: c.Present, Fence: c.Fence}
	if c.Value != nil || c.Base64 != nil {
		value, err := value(c.Value, c.Base64)
		if err != nil {
			return out, err
		}
		out.Value = &value
	}
	return out, nil
}

func trim(path string) string { return strings.Trim(path, "/") }

func value(text, base *string) ([]byte, error) {
	switch {
	case text != nil && base != nil:
		return nil, invalid("value and value64 exclude each other")
	case base != nil:
		b, err := base64.StdEncoding.DecodeString(*base)
		if err != nil {
			return nil, invalid("value64: %v", err)
		}
		return b, nil
	case text != nil:
		return []byte(*text), nil
	}
	return nil, nil
}

func parseOps(where string, in []opJSON) ([]client.LockOp, error) {
	out := make([]client.LockOp, 0, len(in))
	for i, o := range in {
		var op client.LockOp
		verbs := 0
		for _, v := range []struct {
			path *string
			verb client.LockVerb
		}{{o.Put, client.LockPutOp}, {o.Append, client.LockAppendOp}, {o.Delete, client.LockDeleteOp}, {o.Mkdir, client.LockMkdirOp}, {o.Get, client.LockReadOp}} {
			if v.path != nil {
				op.Verb, op.Path = v.verb, trim(*v.path)
				verbs++
			}
		}
		if verbs != 1 {
			return nil, dc.Wrap(invalid("an operation has one of put, append, delete, mkdir and get"), where, number1(i))
		}
		var err error
		if op.Value, err = value(o.Value, o.Base64); err != nil {
			return nil, dc.Wrap(err, where, number1(i))
		}
		out = append(out, op)
	}
	return out, nil
}

func answer(r client.LockTxnResult) []byte {
	out := answerJSON{OK: r.Then, Rev: r.Revision, Results: []resultJSON{}}
	for _, f := range r.Reads {
		x := resultJSON{Path: f.Path, Absent: f.Absent, Dir: f.Dir, Version: f.Version}
		if !f.Absent && !f.Dir {
			x.Value, x.Base64 = textOrBytes(f.Value)
		}
		out.Results = append(out.Results, x)
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic("lockfs: " + err.Error()) // strings, numbers and bytes only
	}
	return append(b, '\n')
}
