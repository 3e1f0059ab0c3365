package meta

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/storagetest"
)

type state struct {
	*storagetest.Run
	t *testing.T
}

// try applies one command.
func (s state) try(op *command.MetaCommand) (*command.MetaResult, error) {
	s.t.Helper()
	op.Version = Version
	body, err := s.Apply(encode(op))
	if err != nil {
		return nil, err
	}
	res := &command.MetaResult{}
	return res, proto.Unmarshal(body, res)
}

func (s state) must(op *command.MetaCommand) *command.MetaResult {
	s.t.Helper()
	res, err := s.try(op)
	if err != nil {
		s.t.Fatal(err)
	}
	return res
}

// fails applies a command that must be refused with a kind, and must change nothing.
func (s state) fails(op *command.MetaCommand, want dc.Kind) {
	s.t.Helper()
	before := s.Dump()
	if _, err := s.try(op); !errors.Is(err, want) {
		s.t.Errorf("got %v, want %v", err, want)
	}
	if diff := cmp.Diff(s.Dump(), before); diff != "" {
		s.t.Errorf("a refused command changed rows:\n%s", diff)
	}
}

func initOp(cluster string) *command.MetaCommand {
	return &command.MetaCommand{Op: &command.MetaCommand_Init{Init: &command.MetaInit{
		Cluster: cluster,
		Node:    &command.MetaNode{Id: 1, Name: "first", Address: "a:1"},
		Groups: []*command.MetaGroup{
			{Id: 1, Name: "meta", Kind: "meta", Want: 3, Nodes: []uint64{1}},
			{Id: 5, Name: "kv/0", Kind: "kv", Want: 3, Nodes: []uint64{1}, Bootstrap: 1},
			{Id: 6, Name: "topic/0", Kind: "topic", Want: 3, Nodes: []uint64{1}, Bootstrap: 1},
		},
	}}}
}

func mint(hash string, expires int64) *command.MetaCommand {
	return &command.MetaCommand{Op: &command.MetaCommand_MintToken{MintToken: &command.MetaMintToken{Hash: []byte(hash), ExpiresMs: expires}}}
}

func join(hash, key, name string) *command.MetaCommand {
	return &command.MetaCommand{Op: &command.MetaCommand_Admit{Admit: &command.MetaAdmit{Hash: []byte(hash), KeyHash: []byte(key), Name: name, Address: "b:2"}}}
}

func remove(n uint64) *command.MetaCommand {
	return &command.MetaCommand{Op: &command.MetaCommand_RemoveNode{RemoveNode: &command.MetaRemoveNode{Node: n}}}
}

func fresh(t *testing.T) state {
	s := state{storagetest.New(New()), t}
	s.must(initOp("c1"))
	return s
}

func TestInitOnceForOneCluster(t *testing.T) {
	s := fresh(t)
	before := s.Dump()
	s.must(initOp("c1"))
	if diff := cmp.Diff(s.Dump(), before); diff != "" {
		t.Errorf("a repeated init changed rows:\n%s", diff)
	}
	s.fails(initOp("c2"), dc.Exists)
	if got := len(s.Events()); got != 4 {
		t.Errorf("%d events, want a node and three groups", got)
	}
}

func TestATokenAdmitsOneNodeOnce(t *testing.T) {
	s := fresh(t)
	s.must(mint("h", s.Clock()+1000))
	s.fails(join("wrong", "k", "second"), dc.Denied)
	s.fails(join("h", "k", "first"), dc.Exists)
	s.fails(join("h", "k", "bad name"), dc.Invalid)
	got := s.must(join("h", "k", "second")).Node
	want := &command.MetaNode{
		Id: 2, Name: "second", Address: "b:2", State: command.MetaNode_STATE_ACTIVE, JoinedMs: s.Clock(), KeyHash: []byte("k"), Record: uint64(s.Index()),
	}
	if diff := cmp.Diff(got, want, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	s.fails(join("h", "other", "third"), dc.Denied)
	if again := s.must(join("h", "k", "second")).Node; again.Id != 2 {
		t.Errorf("the same key again got node %d, want 2", again.Id)
	}
	s.must(remove(2))
	s.fails(join("h", "k", "second"), dc.Denied)
}

func TestAnExpiredTokenIsRefusedAndSwept(t *testing.T) {
	s := fresh(t)
	s.must(mint("h", s.Clock()+1000))
	s.SetClock(s.Clock() + 1000)
	s.fails(join("h", "k", "second"), dc.Denied)
	for i := range maxTokens {
		s.must(mint(fmt.Sprint("t", i), s.Clock()+1000))
	}
	s.fails(mint("one more", s.Clock()+1000), dc.NoSpace)
	s.SetClock(s.Clock() + 1000)
	s.must(mint("one more", s.Clock()+1000))
	_ = s.View(func(r storage.Reader) error {
		if c, _ := Cluster(r); c.Tokens != maxTokens-sweepTokens+1 {
			t.Errorf("%d tokens counted, want %d", c.Tokens, maxTokens-sweepTokens+1)
		}
		return nil
	})
}

func TestARemovedNodeStaysRemoved(t *testing.T) {
	s := fresh(t)
	s.fails(remove(1), dc.Invalid) // the last one
	s.fails(remove(9), dc.NotFound)
	s.must(mint("h", s.Clock()+1000))
	s.must(join("h", "k", "second"))
	s.must(remove(2))
	s.must(remove(2))
	s.fails(&command.MetaCommand{Op: &command.MetaCommand_Register{Register: &command.MetaRegister{Node: 2, Address: "x"}}}, dc.Denied)
	s.must(mint("h2", s.Clock()+1000))
	if n := s.must(join("h2", "k2", "second")).Node; n.Id != 3 {
		t.Errorf("a node that took the removed one's name got id %d, want a new one", n.Id)
	}
}

func TestPlaceReplacesTheVersionItWasMadeOf(t *testing.T) {
	s := fresh(t)
	s.must(mint("h", s.Clock()+1000))
	s.must(join("h", "k", "second"))
	group := func() *command.MetaGroup {
		var g *command.MetaGroup
		_ = s.View(func(r storage.Reader) error { g, _ = Group(r, 5); return nil })
		return g
	}
	move := func(version uint64, nodes ...uint64) *command.MetaCommand {
		return &command.MetaCommand{Op: &command.MetaCommand_Place{Place: &command.MetaPlace{Group: 5, IfVersion: version, Nodes: nodes}}}
	}
	v := group().Version
	s.fails(move(v+1, 1, 2), dc.Conflict)
	s.fails(move(v), dc.Invalid)
	s.fails(move(v, 1, 1), dc.Invalid)
	s.fails(move(v, 1, 7), dc.NotFound)
	s.must(move(v, 2, 1))
	s.fails(move(v, 1), dc.Conflict)
	if diff := cmp.Diff(group().Nodes, []uint64{1, 2}); diff != "" {
		t.Error(diff)
	}
	s.must(remove(2))
	s.fails(&command.MetaCommand{Op: &command.MetaCommand_Place{Place: &command.MetaPlace{Group: 6, IfVersion: 1, Nodes: []uint64{1, 2}}}}, dc.Denied)
	s.must(&command.MetaCommand{Op: &command.MetaCommand_GroupStarted{GroupStarted: &command.MetaGroupStarted{Group: 5}}})
	if group().Bootstrap != 0 {
		t.Error("a group that runs may still be bootstrapped")
	}
}

func TestDescriptors(t *testing.T) {
	s := fresh(t)
	create := func(kind, name string) *command.MetaCommand {
		return &command.MetaCommand{Op: &command.MetaCommand_CreateDescriptor{CreateDescriptor: &command.MetaCreateDescriptor{Kind: kind, Name: name, Uid: 7, Mode: 0o755}}}
	}
	first := s.must(create("table", "users")).Descriptor_
	want := &command.MetaDescriptor{Kind: "table", Name: "users", Id: 1, Group: 5, CreatedMs: s.Clock(), Uid: 7, Mode: 0o755}
	if diff := cmp.Diff(first, want, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	s.fails(create("table", "users"), dc.Exists)
	s.fails(create("table", ".dc"), dc.Invalid)
	s.fails(create("table", "a/b"), dc.Invalid)
	s.fails(create("volume", "x"), dc.Invalid)
	if topic := s.must(create("topic", "users")).Descriptor_; topic.Group != 6 || topic.Id != 2 {
		t.Errorf("topic got id %d in group %d, want 2 in 6", topic.Id, topic.Group)
	}
	s.must(&command.MetaCommand{Op: &command.MetaCommand_MarkDropping{MarkDropping: &command.MetaMarkDropping{Kind: "table", Id: 1}}})
	again := s.must(create("table", "users")).Descriptor_
	if again.Id != 3 {
		t.Errorf("a table made anew got id %d, want 3", again.Id)
	}
	// Removing the old one leaves the new one's name alone.
	s.must(&command.MetaCommand{Op: &command.MetaCommand_RemoveDescriptor{RemoveDescriptor: &command.MetaRemoveDescriptor{Kind: "table", Id: 1}}})
	s.must(&command.MetaCommand{Op: &command.MetaCommand_RemoveDescriptor{RemoveDescriptor: &command.MetaRemoveDescriptor{Kind: "table", Id: 1}}})
	for _, name := range []string{"b", "a", "usersx"} {
		s.must(create("table", name))
	}
	_ = s.View(func(r storage.Reader) error {
		if d, ok := Named(r, "table", "users"); !ok || d.Id != 3 {
			t.Errorf("users is %v, %v; want id 3", d, ok)
		}
		var names []string
		for after := ""; ; {
			page := List(r, "table", after, 2)
			for _, d := range page {
				names = append(names, d.Name)
				after = d.Name
			}
			if len(page) < 2 {
				break
			}
		}
		if diff := cmp.Diff(names, []string{"a", "b", "users", "usersx"}); diff != "" {
			t.Error(diff)
		}
		return nil
	})
}

func TestLabelsAndDrain(t *testing.T) {
	s := fresh(t)
	set := func(drain *bool, labels map[string]string) *command.MetaNode {
		return s.must(&command.MetaCommand{Op: &command.MetaCommand_SetNode{SetNode: &command.MetaSetNode{Node: 1, Drain: drain, SetLabels: labels}}}).Node
	}
	set(proto.Bool(true), map[string]string{"rack": "r1", "zone": "z"})
	n := set(nil, map[string]string{"zone": ""})
	if !n.Drain {
		t.Error("a change of labels undid the drain mark")
	}
	if diff := cmp.Diff(n.Labels, map[string]string{"rack": "r1"}); diff != "" {
		t.Error(diff)
	}
	s.Events()
	set(nil, map[string]string{"rack": "r1"})
	if got := s.Events(); len(got) != 0 {
		t.Errorf("a change that changes nothing emitted %v", got)
	}
}

func TestDecommission(t *testing.T) {
	s := fresh(t)
	s.must(mint("h", s.Clock()+1000))
	s.must(join("h", "k", "second"))
	mark := func(m *command.MetaSetNode) *command.MetaNode {
		m.Node = 2
		return s.must(&command.MetaCommand{Op: &command.MetaCommand_SetNode{SetNode: m}}).Node
	}
	removeEmpty := &command.MetaCommand{Op: &command.MetaCommand_RemoveNode{RemoveNode: &command.MetaRemoveNode{Node: 2, IfEmpty: true}}}
	s.fails(removeEmpty, dc.Conflict)
	if n := mark(&command.MetaSetNode{Decommission: proto.Bool(true)}); !n.Drain || !n.Decommission {
		t.Errorf("decommissioned: %v", n)
	}
	if n := mark(&command.MetaSetNode{Drain: proto.Bool(false)}); n.Drain || n.Decommission {
		t.Errorf("an undrained node is still to go: %v", n)
	}
	mark(&command.MetaSetNode{Decommission: proto.Bool(true)})
	place := func(nodes ...uint64) {
		var g *command.MetaGroup
		_ = s.View(func(r storage.Reader) error { g, _ = Group(r, 5); return nil })
		s.must(&command.MetaCommand{Op: &command.MetaCommand_Place{Place: &command.MetaPlace{Group: 5, IfVersion: g.Version, Nodes: nodes}}})
	}
	place(1, 2)
	s.fails(removeEmpty, dc.Busy)
	place(1)
	if n := s.must(removeEmpty).Node; n.State != command.MetaNode_STATE_REMOVED {
		t.Errorf("not removed: %v", n)
	}
}

func TestAPlaceOfAPersonIsKept(t *testing.T) {
	s := fresh(t)
	s.must(mint("h", s.Clock()+1000))
	s.must(join("h", "k", "second"))
	place := func(want dc.Kind, p *command.MetaPlace) *command.MetaGroup {
		t.Helper()
		var g *command.MetaGroup
		_ = s.View(func(r storage.Reader) error { g, _ = Group(r, 5); return nil })
		p.Group, p.IfVersion = 5, g.Version
		op := &command.MetaCommand{Op: &command.MetaCommand_Place{Place: p}}
		if want != 0 {
			s.fails(op, want)
			return nil
		}
		return s.must(op).Group
	}
	place(dc.Invalid, &command.MetaPlace{Nodes: []uint64{1}, Prefer: proto.Uint64(2)})
	if g := place(0, &command.MetaPlace{Nodes: []uint64{1, 2}, Pinned: proto.Bool(true), Prefer: proto.Uint64(2)}); !g.Pinned || g.Prefer != 2 {
		t.Errorf("got %v", g)
	}
	if g := place(0, &command.MetaPlace{Nodes: []uint64{1}}); !g.Pinned || g.Prefer != 0 {
		t.Errorf("without its preferred leader: %v", g)
	}
	if g := place(0, &command.MetaPlace{Nodes: []uint64{1}, Pinned: proto.Bool(false)}); g.Pinned {
		t.Errorf("given back: %v", g)
	}
}
