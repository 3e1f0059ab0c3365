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
#    "do":   [{"put":"a","value":"x"}, {"append":"log","value":"line\n"}, {"delete":"b"}, {"mkdir":"d"}, {"get":"c"}, {"list":"d","limit":10}],
#    "else": [{"get":"a"}]}
# Conditions: version, created (both revisions), absent, present, value (or value64), fence. All changes have one revision.
# Answer: {"succeeded":true,"revision":42,"results":[{"path":"c","version":7,"value":"..."}]}; results are those of the gets and lists; of a list
# {"path":"d","dir":true,"files":[...]}, with the values.
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
	Created *dc.Revision `json:"created"`
}

type opJSON struct {
	Put    *string `json:"put"`
	Append *string `json:"append"`
	Delete *string `json:"delete"`
	Mkdir  *string `json:"mkdir"`
	Get    *string `json:"get"`
	List   *string `json:"list"`
	Limit  *uint32 `json:"limit"`
	After  *string `json:"after"`
	Value  *string `json:"value"`
	Base64 *string `json:"value64"`
}

type answerJSON struct {
	OK      bool         `json:"succeeded"`
	Rev     dc.Revision  `json:"revision"`
	Results []resultJSON `json:"results"`
}

type resultJSON struct {
	Path    string       `json:"path"`
	Absent  bool         `json:"absent,omitempty"`
	Dir     bool         `json:"dir,omitempty"`
	Version dc.Revision  `json:"version,omitempty"`
	Created dc.Revision  `json:"created,omitempty"`
	Value   *string      `json:"value,omitempty"`
	Base64  []byte       `json:"value64,omitempty"`
	Files   []resultJSON `json:"files,omitempty"`
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
	if c.Version == nil && !c.Absent && !c.Present && c.Value == nil && c.Base64 == nil && c.Fence == nil && c.Created == nil {
		return client.LockCondition{}, invalid("the condition on %q says nothing: want version, created, absent, present, value or fence", *path)
	}
	out := client.LockCondition{Path: trim(*path), Version: c.Version, Absent: c.Absent, Present: c.Present, Fence: c.Fence, Created: c.Created}
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
		}{{o.Put, client.LockPutOp}, {o.Append, client.LockAppendOp}, {o.Delete, client.LockDeleteOp}, {o.Mkdir, client.LockMkdirOp}, {o.Get, client.LockReadOp}, {o.List, client.LockListOp}} {
			if v.path != nil {
				op.Verb, op.Path = v.verb, trim(*v.path)
				verbs++
			}
		}
		if verbs != 1 {
			return nil, dc.Wrap(invalid("an operation has one of put, append, delete, mkdir, get and list"), where, number1(i))
		}
		if o.Limit != nil || o.After != nil {
			if op.Verb != client.LockListOp {
				return nil, dc.Wrap(invalid("limit and after are of list"), where, number1(i))
			}
			if o.Limit != nil {
				op.Limit = int(*o.Limit)
			}
			if o.After != nil {
				op.After = *o.After
			}
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
	for i := 0; i < len(r.Reads); i++ {
		x := result(r.Reads[i])
		for range r.Reads[i].Entries {
			i++
			x.Files = append(x.Files, result(r.Reads[i]))
		}
		out.Results = append(out.Results, x)
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic("lockfs: " + err.Error()) // strings, numbers and bytes only
	}
	return append(b, '\n')
}

func result(f client.LockFile) resultJSON {
	x := resultJSON{Path: f.Path, Absent: f.Absent, Dir: f.Dir, Version: f.Version, Created: f.Created}
	if !f.Absent && !f.Dir {
		x.Value, x.Base64 = textOrBytes(f.Value)
	}
	return x
}
