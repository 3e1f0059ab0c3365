package nodefs

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// Cluster is what the room needs of the meta group; client.Meta has it.
type Cluster interface {
	// Nodes gives up to limit nodes in name order, strictly after a name; Node finds one by name, or dc.NotFound.
	Nodes(ctx context.Context, after string, limit int) ([]client.Node, error)
	Node(ctx context.Context, name string) (client.Node, error)
	// Drain keeps new work off a node and moves what is on it elsewhere, or lets it on again.
	Drain(ctx context.Context, node string, drain bool) error
	// Decommission drains a node and removes it when nothing is left on it.
	Decommission(ctx context.Context, node string) error
	// Label sets labels; an empty value removes one.
	Label(ctx context.Context, node string, labels map[string]string) error
	// RemoveNode takes a node out of the cluster for ever.
	RemoveNode(ctx context.Context, node string) error
}

var _ Cluster = (*client.Meta)(nil)

const (
	key     = "nodes"
	ctlMode = 0o644 // root's alone
)

// New makes the directory /dc/nodes.
func New(c Cluster) synth.Dir { return &room{c} }

type room struct{ cluster Cluster }

func (r *room) Key() string { return key }

func (r *room) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o755}, nil
}

func (r *room) Lookup(ctx context.Context, name string) (synth.Node, error) {
	if strings.HasPrefix(name, ".") { // no node is called that: do not ask the leader
		return nil, dc.Errorf(dc.NotFound, "lookup", key+"/"+name, "")
	}
	if _, err := r.cluster.Node(ctx, name); err != nil {
		return nil, err
	}
	return r.node(name), nil
}

func (r *room) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	nodes, err := r.cluster.Nodes(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	list := make([]synth.DirEntry, len(nodes))
	for i, n := range nodes {
		list[i] = synth.DirEntry{Name: n.Name, IsDir: true, Key: key + "/" + n.Name}
	}
	return list, nil
}

// node is the directory of one machine.
func (r *room) node(name string) synth.Dir {
	base := key + "/" + name
	status := func(ctx context.Context) ([]synth.Pair, error) {
		n, err := r.cluster.Node(ctx, name)
		if err != nil {
			return nil, err
		}
		return pairs(n), nil
	}
	ctl := synth.Ctl(base+"/ctl", synth.CtlSpec{
		Attr:     synth.Attr{Mode: ctlMode},
		Commands: r.commands(name),
		Settings: func(ctx context.Context) ([]byte, error) {
			n, err := r.cluster.Node(ctx, name)
			if err != nil {
				return nil, err
			}
			return settings(n), nil
		},
	})
	return synth.Static(base, append(synth.StatusFiles("status", base+"/status", status), synth.Named{Name: "ctl", Node: ctl})...)
}

func (r *room) commands(name string) []synth.Command {
	drain := func(on bool) func(context.Context, []string) error {
		return func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				return dc.Errorf(dc.Invalid, "", "", "it takes no words")
			}
			return r.cluster.Drain(ctx, name, on)
		}
	}
	return []synth.Command{
		{Name: "drain", Do: drain(true)},
		{Name: "undrain", Do: drain(false)},
		{Name: "decommission", Do: func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				return dc.Errorf(dc.Invalid, "", "", "it takes no words")
			}
			return r.cluster.Decommission(ctx, name)
		}},
		{Name: "label", Usage: "KEY=VALUE ... (an empty VALUE removes the label)", Do: func(ctx context.Context, args []string) error {
			labels := make(map[string]string)
			for _, a := range args {
				k, v, ok := strings.Cut(a, "=")
				if !ok || k == "" {
					return dc.Errorf(dc.Invalid, "", "", "%q is not KEY=VALUE", a)
				}
				labels[k] = v
			}
			if len(labels) == 0 {
				return dc.Errorf(dc.Invalid, "", "", "no label given")
			}
			return r.cluster.Label(ctx, name, labels)
		}},
		{Name: "rm", Usage: name, Do: func(ctx context.Context, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] != name {
				return dc.Errorf(dc.Invalid, "", "", "this is the node %s", name)
			}
			return r.cluster.RemoveNode(ctx, name)
		}},
	}
}

func pairs(n client.Node) []synth.Pair {
	ps := []synth.Pair{
		{Key: "state", Value: n.State},
		{Key: "id", Value: n.ID},
		{Key: "address", Value: n.Address},
		{Key: "version", Value: n.Version},
		{Key: "disk-free", Value: n.FreeBytes},
		{Key: "disk-total", Value: n.TotalBytes},
		{Key: "seen", Value: n.Seen},
		{Key: "replicas", Value: n.Replicas},
		{Key: "leaders", Value: n.Leaders},
		{Key: "blocks", Value: n.Blocks},
	}
	if n.Decommission {
		ps = append(ps, synth.Pair{Key: "decommission", Value: "when nothing is left"})
	}
	for _, w := range n.Waits {
		ps = append(ps, synth.Pair{Key: "left", Value: w})
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		ps = append(ps, synth.Pair{Key: "label", Value: k + "=" + n.Labels[k]})
	}
	return ps
}

// settings is what can be written back.
func settings(n client.Node) []byte {
	var b bytes.Buffer
	switch {
	case n.Decommission:
		b.WriteString("decommission\n")
	case n.Drain:
		b.WriteString("drain\n")
	default:
		b.WriteString("undrain\n")
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		fmt.Fprintf(&b, "label %s=%s\n", k, n.Labels[k])
	}
	return b.Bytes()
}
