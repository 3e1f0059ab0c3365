package kvfs

import (
	"bytes"
	"context"
	"encoding/json"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

const txnUsage = `# Write a transaction, then read its answer from the same descriptor:
# {"if":[{"key":"a","version":3},{"key":"b","absent":true}],"do":[{"put":"a","value":"x"},{"add":"n","by":1},{"delete":"b"}],"else":[]}
# With "fence":"TOKEN@LOCK" the whole is refused (ESTALE) if that lock was taken by another since.
`

type jsonTxn struct {
	If   []jsonCondition `json:"if"`
	Do   []jsonAction    `json:"do"`
	Else []jsonAction    `json:"else"`

	Fence *string `json:"fence"`
}

type jsonCondition struct {
	Key     string  `json:"key"`
	Version *uint64 `json:"version"`
	Absent  bool    `json:"absent"`
	Present bool    `json:"present"`
	Value   *string `json:"value"`
}

type jsonAction struct {
	Put    string `json:"put"`
	Append string `json:"append"`
	Value  string `json:"value"`
	Add    string `json:"add"`
	By     *int64 `json:"by"`
	Delete string `json:"delete"`
}

type jsonAnswer struct {
	Succeeded bool              `json:"succeeded"`
	Revision  uint64            `json:"revision"`
	Values    map[string]string `json:"values,omitempty"`
}

// parseTxn reads a transaction, and the fence it is under; the zero one for none.
func parseTxn(request []byte) (client.KVTxn, dc.Fence, error) {
	dec := json.NewDecoder(bytes.NewReader(request))
	dec.DisallowUnknownFields()
	var j jsonTxn
	var x client.KVTxn
	var f dc.Fence
	if err := dec.Decode(&j); err != nil {
		return x, f, dc.Errorf(dc.Invalid, "kv.txn", "", "not a transaction in JSON: %w", err)
	}
	for _, c := range j.If {
		cond := client.KVCondition{Key: c.Key, Version: (*dc.Revision)(c.Version), Absent: c.Absent, Present: c.Present}
		if c.Value != nil {
			cond.Value = []byte(*c.Value)
		}
		if c.Key == "" {
			return x, f, dc.Errorf(dc.Invalid, "kv.txn", "", `a condition has no "key"`)
		}
		x.If = append(x.If, cond)
	}
	var err error
	if j.Fence != nil {
		if f, err = dc.ParseFence(*j.Fence); err != nil {
			return x, f, err
		}
	}
	if x.Then, err = parseActions(j.Do); err != nil {
		return x, f, err
	}
	x.Else, err = parseActions(j.Else)
	return x, f, err
}

func parseActions(in []jsonAction) ([]client.KVAction, error) {
	out := make([]client.KVAction, 0, len(in))
	for i, a := range in {
		var o client.KVAction
		n := 0
		for _, v := range []string{a.Put, a.Append, a.Add, a.Delete} {
			if v != "" {
				n++
				o.Key = v
			}
		}
		if n != 1 {
			return nil, dc.Errorf(dc.Invalid, "kv.txn", "", `action %d must have exactly one of "put", "append", "add" and "delete", naming a key`, i+1)
		}
		switch {
		case a.Put != "":
			o.Put = []byte(a.Value)
		case a.Append != "":
			o.Append = []byte(a.Value)
		case a.Add != "":
			by := int64(1)
			if a.By != nil {
				by = *a.By
			}
			o.Add = &by
		default:
			o.Delete = true
		}
		out = append(out, o)
	}
	return out, nil
}

func txnSpec(s Store, t client.Descriptor) synth.CloneSpec {
	return synth.CloneSpec{
		Usage: txnUsage,
		Max:   dc.MaxCommandBytes,
		Validate: func(_ context.Context, request []byte) error {
			_, _, err := parseTxn(request)
			return err
		},
		Commit: func(ctx context.Context, request []byte) (synth.Source, error) {
			x, fence, err := parseTxn(request)
			if err != nil {
				return nil, err
			}
			if !fence.IsZero() {
				ctx = dc.WithFence(ctx, fence)
			}
			res, err := s.Txn(ctx, t, x)
			if err != nil {
				return nil, err
			}
			a := jsonAnswer{Succeeded: res.Succeeded, Revision: uint64(res.Revision)}
			for _, v := range res.Values {
				if a.Values == nil {
					a.Values = map[string]string{}
				}
				a.Values[v.Key] = string(bytes.TrimSpace(v.Value))
			}
			b, err := json.Marshal(a)
			if err != nil {
				return nil, dc.Errorf(dc.Internal, "kv.txn", t.Name, "encode the answer: %w", err)
			}
			return synth.Bytes(append(b, '\n')), nil
		},
	}
}
