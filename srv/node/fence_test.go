package node

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/kv"
	"missingos/storage"
	"missingos/storage/command"
	kvmachine "missingos/storage/machine/kv"
)

// TestOnlyWhatAGroupHasNotSeenIsAskedAbout has a group that was written to under 5@seen.
func TestOnlyWhatAGroupHasNotSeenIsAskedAbout(t *testing.T) {
	kind := kv.New(kv.Config{}).Kind()
	m := newMember(7, kind, t.TempDir())
	var err error
	m.shard, err = storage.Open(m.dir, kind.Machine(), storage.Config{Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.shard.Close() }()
	id := dc.RequestID{Client: 1, Seq: 1, Done: 1, Issued: 1000, Fence: dc.Fence{Lock: "seen", Token: 5}}
	body, err := proto.Marshal(&command.KVCommand{Version: kvmachine.Version, Op: &command.KVCommand_Put{Put: &command.KVPut{}}})
	if err != nil {
		t.Fatal(err)
	}
	m.shard.Apply([]storage.Entry{{Index: 1, Term: 1, Clock: 1000, Commands: [][]byte{command.Encode(id, body)}}})
	const admitted = dc.Kind(255)
	for _, test := range []struct {
		name   string
		fence  dc.Fence
		answer error // of the lock store
		asked  bool
		want   dc.Kind
	}{
		{"no condition", dc.Fence{}, nil, false, admitted},
		{"seen", dc.Fence{Lock: "seen", Token: 5}, dc.Stale, false, admitted},
		{"older: refused as it is applied", dc.Fence{Lock: "seen", Token: 4}, nil, false, admitted},
		{"newer", dc.Fence{Lock: "seen", Token: 6}, nil, true, admitted},
		{"newer, made up", dc.Fence{Lock: "seen", Token: 6}, dc.Stale, true, dc.Stale},
		{"another lock", dc.Fence{Lock: "other", Token: 1}, nil, true, admitted},
		{"another lock that is not held", dc.Fence{Lock: "other", Token: 1}, dc.Stale, true, dc.Stale},
		{"no majority of the lock group", dc.Fence{Lock: "other", Token: 1}, dc.Unavailable, true, dc.Unavailable},
		{"shared", dc.Fence{Lock: "other", Token: 1}, dc.Invalid, true, dc.Invalid},
		{"no token", dc.Fence{Lock: "other"}, nil, false, dc.Invalid},
		{"no lock", dc.Fence{Token: 3}, nil, false, dc.Invalid},
		{"a long name", dc.Fence{Lock: strings.Repeat("l", dc.MaxFenceLockBytes+1), Token: 3}, nil, false, dc.Invalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := false
			m.holds = func(_ context.Context, f dc.Fence) error {
				if asked = true; f != test.fence {
					t.Errorf("asked about %v", f)
				}
				return test.answer
			}
			got := admitted
			if err := m.admit(t.Context(), test.fence); err != nil {
				got = dc.KindOf(err)
			}
			if got != test.want || asked != test.asked {
				t.Errorf("answered %v, asked %v; want %v, %v", got, asked, test.want, test.asked)
			}
		})
	}
}
