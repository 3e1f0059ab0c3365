package kv

import (
	"bytes"
	"strconv"
	"strings"

	"missingos/srv/dc"
	"missingos/storage/command"
)

func (s *stage) txn(c *command.KVTxn) (*command.KVResult, error) {
	if n := max(len(c.Conditions), len(c.Then), len(c.Otherwise)); n > dc.MaxKVTxnItems {
		return nil, dc.Errorf(dc.TooLarge, "kv.txn", "", "%d items exceed the limit of %d of a transaction (MaxKVTxnItems)", n, dc.MaxKVTxnItems)
	}
	if err := s.oneRange(c); err != nil {
		return nil, err
	}
	res := &command.KVResult{Succeeded: true}
	for _, cond := range c.Conditions {
		if !s.holds(cond) {
			res.Succeeded = false
			break
		}
	}
	actions := c.Then
	if !res.Succeeded {
		actions = c.Otherwise
	}
	for _, a := range actions {
		if err := s.act(a, c.Owner, res); err != nil {
			return nil, err
		}
	}
	return res, nil
}

func (s *stage) holds(c *command.KVCondition) bool {
	r := s.row(c.Key)
	there := r != nil && !r.Dir
	switch {
	case c.Absent && there, c.Present && !there:
		return false
	case c.Version != nil && (!there && *c.Version != 0 || there && r.Revision != *c.Version):
		return false
	case c.Value != nil && (!there || !bytes.Equal(r.Value, c.Value)):
		return false
	}
	return true
}

func (s *stage) act(a *command.KVAction, owner *command.KVOwner, res *command.KVResult) error {
	const op = "kv.txn"
	old, err := s.place(op, a.Key)
	if err != nil {
		return err
	}
	var value []byte
	switch act := a.Act.(type) {
	case *command.KVAction_Delete:
		if old != nil {
			s.nextRevision()
			s.set(a.Key, nil)
			s.keepParent(a.Key)
		}
		return nil
	case *command.KVAction_Put:
		value = act.Put
	case *command.KVAction_Append:
		value = append(bytes.Clone(old.GetValue()), act.Append...)
	case *command.KVAction_Add:
		if value, err = add(a.Key, old.GetValue(), act.Add); err != nil {
			return err
		}
		res.Values = append(res.Values, &command.KVPair{Key: a.Key, Value: value})
	default:
		return dc.Errorf(dc.Invalid, op, shorten(a.Key), "an action puts, appends, adds or deletes")
	}
	if err := CheckValue(op, a.Key, uint64(len(value))); err != nil {
		return err
	}
	_, replaces := a.Act.(*command.KVAction_Put)
	s.write(a.Key, value, old, replaces, owner)
	return nil
}

// add gives the decimal sum; white space around the old number is dropped, a final newline kept.
func add(key, old []byte, by int64) ([]byte, error) {
	text := strings.TrimSpace(string(old))
	n := int64(0)
	if text != "" {
		var err error
		if n, err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, dc.Errorf(dc.Invalid, "kv.txn", shorten(key), "cannot add to %.40q: not a whole number", text)
		}
	}
	if sum := n + by; (sum > n) == (by > 0) {
		out := strconv.AppendInt(nil, sum, 10)
		if bytes.HasSuffix(old, []byte{'\n'}) {
			out = append(out, '\n')
		}
		return out, nil
	}
	return nil, dc.Errorf(dc.Range, "kv.txn", shorten(key), "%d + %d does not fit into 64 bits", n, by)
}
