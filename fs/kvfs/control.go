package kvfs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// control is a table's hidden directory.
func control(s Store, t client.Descriptor) synth.Dir {
	k := key(t, "", true) + controlName
	children := []synth.Named{
		{Name: "ctl", Node: synth.Ctl(k+"/ctl", ctl(s, t))},
		{Name: "load", Node: newLoad(k+"/load", s, t)},
		{Name: "ranges", Node: synth.Value(k+"/ranges", synth.ValueSpec{Read: func(ctx context.Context) ([]byte, error) {
			st, err := s.TableStat(ctx, t)
			if err != nil {
				return nil, err
			}
			leader := "-"
			if st.Leader != 0 {
				leader = st.Leader.String()
			}
			var out []byte
			for _, g := range st.Ranges {
				out = fmt.Appendf(out, "%s %s %s %s %d\n", boundText(g.Start), boundText(g.End), t.Group, leader, g.Bytes)
			}
			return out, nil
		}})},
		{Name: "scan", Node: synth.Clone(k+"/scan", scanSpec(s, t))},
		{Name: "txn", Node: synth.Clone(k+"/txn", txnSpec(s, t))},
	}
	return synth.Static(k, append(children, synth.StatusFiles("stat", k+"/stat", func(ctx context.Context) ([]synth.Pair, error) {
		st, err := s.TableStat(ctx, t)
		if err != nil {
			return nil, err
		}
		return []synth.Pair{
			{Key: "table", Value: t.Name},
			{Key: "id", Value: t.ID},
			{Key: "rows", Value: st.Rows},
			{Key: "bytes", Value: st.Bytes},
			{Key: "ranges", Value: len(st.Ranges)},
			{Key: "revision", Value: uint64(st.Revision)},
			{Key: "created", Value: t.Created},
			{Key: "changed", Value: st.ModTime},
		}, nil
	})...)...)
}

// boundText writes a range's bound: - for none, and in quotes, as a Go string, what would not read as one word.
func boundText(key string) string {
	if key == "" {
		return "-"
	}
	if quoted := strconv.Quote(key); key == "-" || len(quoted) != len(key)+2 || strings.Contains(key, " ") {
		return quoted
	}
	return key
}

func ctl(s Store, t client.Descriptor) synth.CtlSpec {
	settings := func(ctx context.Context) ([]byte, error) {
		st, err := s.TableStat(ctx, t)
		ttl := "unlimited"
		if st.TTL > 0 {
			ttl = st.TTL.String()
		}
		return fmt.Appendf(nil, "ttl %s\n", ttl), err
	}
	return synth.CtlSpec{Path: "kv/" + t.Name + "/.dc/ctl", Settings: settings, Commands: []synth.Command{
		{
			Name: "ttl", Usage: "DURATION|unlimited",
			Do: func(ctx context.Context, args []string) error {
				ttl, err := synth.Duration(strings.Join(args, " "), dc.MaxKVTTL)
				if err != nil {
					return err
				}
				return s.SetTableTTL(ctx, t, ttl)
			},
		},
		{
			Name: "drop",
			Do: func(ctx context.Context, args []string) error {
				if len(args) > 0 {
					return dc.Errorf(dc.Invalid, "kv.drop", t.Name, "drop takes no words: it drops this table and all its rows")
				}
				if err := ownerOnly(ctx, "kv.drop", t); err != nil {
					return err
				}
				return s.DropTable(ctx, t, false)
			},
		},
		{
			Name: "split", Usage: "KEY",
			Do: func(ctx context.Context, args []string) error {
				key, err := fields(strings.Join(args, " "))
				if err != nil || len(key) != 1 {
					return dc.Errorf(dc.Invalid, "kv.split", t.Name, "split takes one key, the first row of the new range; in double quotes if it has spaces")
				}
				if err := ownerOnly(ctx, "kv.split", t); err != nil {
					return err
				}
				return s.Split(ctx, t, key[0])
			},
		},
	}}
}

// ownerOnly lets a table's owner and root through.
func ownerOnly(ctx context.Context, op string, t client.Descriptor) error {
	if p, _ := dc.PrincipalOf(ctx); p.UID != 0 && p.UID != t.UID {
		return dc.Errorf(dc.NotOwner, op, t.Name, "only its owner (uid %d) and root may do that to a table", t.UID)
	}
	return nil
}

const scanUsage = `# Write a request, then read rows from the same descriptor: exec 3<>scan; echo 'prefix=a limit=10' >&3; cat <&3
# from=KEY to=KEY prefix=TEXT limit=N keys-only reverse format=json|tsv
`

type scanRequest struct {
	client.KVScan
	tsv bool
}

// parseScan reads the words of a scan request. Values may be quoted as Go strings when they hold spaces.
func parseScan(request []byte) (scanRequest, error) {
	var r scanRequest
	words, err := fields(string(request))
	if err != nil {
		return r, err
	}
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "from":
			r.From = value
		case "to":
			r.To = value
		case "prefix":
			r.Prefix = value
		case "keys-only":
			r.KeysOnly = true
		case "reverse":
			r.Reverse = true
		case "limit":
			if r.Limit, err = strconv.ParseUint(value, 10, 63); err != nil {
				return r, dc.Errorf(dc.Invalid, "kv.scan", "", "limit=%s is not a number", value)
			}
		case "format":
			if value != "json" && value != "tsv" {
				return r, dc.Errorf(dc.Invalid, "kv.scan", "", "format=%s: json or tsv", value)
			}
			r.tsv = value == "tsv"
		default:
			return r, dc.Errorf(dc.Invalid, "kv.scan", "", "unknown word %q; known are from= to= prefix= limit= keys-only reverse format=", w)
		}
	}
	return r, nil
}

// fields splits at white space; a value may be a Go string in double quotes.
func fields(s string) ([]string, error) {
	var out []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		end := strings.IndexAny(s, " \t\n\"")
		if end < 0 {
			return append(out, s), nil
		}
		if s[end] != '"' {
			out, s = append(out, s[:end]), s[end:]
			continue
		}
		quoted, err := strconv.QuotedPrefix(s[end:])
		if err != nil {
			return nil, dc.Errorf(dc.Invalid, "kv.scan", "", "a quote is not closed: %s", s[end:])
		}
		text, _ := strconv.Unquote(quoted) // QuotedPrefix has checked it
		out, s = append(out, s[:end]+text), s[end+len(quoted):]
	}
	return out, nil
}

func scanSpec(s Store, t client.Descriptor) synth.CloneSpec {
	return synth.CloneSpec{
		Usage: scanUsage,
		Validate: func(_ context.Context, request []byte) error {
			_, err := parseScan(request)
			return err
		},
		Commit: func(ctx context.Context, request []byte) (synth.Source, error) {
			r, err := parseScan(request)
			if err != nil {
				return nil, err
			}
			return synth.Pipe(ctx, func(ctx context.Context, emit func([]byte) error) error {
				var line []byte
				return s.Scan(ctx, t, r.KVScan, func(p client.KVPair) error {
					if r.tsv {
						line = appendTSV(line[:0], p, r.KeysOnly)
					} else {
						line = appendJSON(line[:0], p, r.KeysOnly)
					}
					return emit(line)
				})
			}), nil
		},
	}
}

// jsonRow is a row in JSON lines. A value that is not UTF-8 is base64 in value64.
type jsonRow struct {
	Key     string  `json:"key"`
	Value   *string `json:"value,omitempty"`
	Value64 []byte  `json:"value64,omitempty"`
	Version uint64  `json:"version,omitempty"`
}

func appendJSON(b []byte, p client.KVPair, keysOnly bool) []byte {
	r := jsonRow{Key: p.Key, Version: uint64(p.Revision)}
	if !keysOnly {
		r.setValue(p.Value)
	}
	out, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return append(append(b, out...), '\n')
}

func (r *jsonRow) setValue(v []byte) {
	if text := string(v); strings.ToValidUTF8(text, "") == text {
		r.Value = &text
	} else {
		r.Value64 = v
	}
}

func (r *jsonRow) value() []byte {
	if r.Value != nil {
		return []byte(*r.Value)
	}
	return r.Value64
}

var (
	tsvEscape   = strings.NewReplacer("\\", "\\\\", "\t", "\\t", "\n", "\\n", "\r", "\\r")
	tsvUnescape = strings.NewReplacer("\\\\", "\\", "\\t", "\t", "\\n", "\n", "\\r", "\r")
)

// appendTSV writes KEY<TAB>VALUE; one newline at the end of the value is left out, so that what `echo v > key` made reads as v.
func appendTSV(b []byte, p client.KVPair, keysOnly bool) []byte {
	b = append(b, tsvEscape.Replace(p.Key)...)
	if !keysOnly {
		b = append(append(b, '\t'), tsvEscape.Replace(string(bytes.TrimSuffix(p.Value, []byte{'\n'})))...)
	}
	return append(b, '\n')
}
