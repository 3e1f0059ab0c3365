package nodefs_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"missingos/fs/nodefs"
	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// cluster is a complete one in memory.
type cluster map[string]client.Node

func (c cluster) Nodes(_ context.Context, after string, limit int) ([]client.Node, error) {
	var out []client.Node
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if name > after && len(out) < limit {
			out = append(out, c[name])
		}
	}
	return out, nil
}

func (c cluster) Node(_ context.Context, name string) (client.Node, error) {
	n, ok := c[name]
	if !ok {
		return n, dc.NotFound
	}
	return n, nil
}

func (c cluster) change(name string, fn func(*client.Node)) error {
	n, ok := c[name]
	if !ok {
		return dc.NotFound
	}
	fn(&n)
	c[name] = n
	return nil
}

func (c cluster) Decommission(_ context.Context, name string) error {
	return c.change(name, func(n *client.Node) {
		n.State, n.Drain, n.Decommission, n.Waits = "draining", true, true, []string{"group kv/0 is placed on it"}
	})
}

func (c cluster) Drain(_ context.Context, name string, drain bool) error {
	return c.change(name, func(n *client.Node) {
		n.State, n.Drain, n.Decommission, n.Waits = "up", drain, false, nil
		if drain {
			n.State = "draining"
		}
	})
}

func (c cluster) Label(_ context.Context, name string, labels map[string]string) error {
	return c.change(name, func(n *client.Node) {
		n.Labels = maps.Clone(n.Labels)
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		for k, v := range labels {
			n.Labels[k] = v
			if v == "" {
				delete(n.Labels, k)
			}
		}
	})
}

func (c cluster) RemoveNode(_ context.Context, name string) error {
	delete(c, name)
	return nil
}

func find(t *testing.T, d synth.Dir, path string) (synth.Node, error) {
	t.Helper()
	var n synth.Node = d
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if n, err = n.(synth.Dir).Lookup(t.Context(), name); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func read(t *testing.T, d synth.Dir, path string) string {
	t.Helper()
	n, err := find(t, d, path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.(synth.File).Open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	buf := make([]byte, 4096)
	got, err := h.(synth.Reader).Read(t.Context(), buf, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:got])
}

func write(t *testing.T, d synth.Dir, path, text string) error {
	t.Helper()
	n, err := find(t, d, path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.(synth.File).Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	_, err = h.(synth.Writer).Write(t.Context(), []byte(text), 0)
	return err
}

func TestNodes(t *testing.T) {
	c := cluster{
		"n1": {ID: 1, Name: "n1", State: "up", Address: "10.0.0.1:7000", Version: "1", FreeBytes: 5, TotalBytes: 9, Replicas: 2, Leaders: 1},
		"n2": {ID: 2, Name: "n2", State: "down"},
	}
	d := nodefs.New(c)
	list, err := d.List(t.Context(), "", 10)
	want := []synth.DirEntry{{Name: "n1", IsDir: true, Key: "nodes/n1"}, {Name: "n2", IsDir: true, Key: "nodes/n2"}}
	if diff := cmp.Diff(list, want); diff != "" || err != nil {
		t.Errorf("list: %s %v", diff, err)
	}
	if list, _ := d.List(t.Context(), "n1", 10); len(list) != 1 {
		t.Errorf("got %d names after n1, want 1", len(list))
	}
	wantStatus := "state up\nid n1\naddress 10.0.0.1:7000\nversion 1\ndisk-free 5\ndisk-total 9\nseen\nreplicas 2\nleaders 1\nblocks 0\n"
	if got := read(t, d, "n1/status"); got != wantStatus {
		t.Errorf("got %q, want %q", got, wantStatus)
	}
	if err := write(t, d, "n1/ctl", "drain\nlabel rack=r1 gpu=no\nlabel gpu=\n"); err != nil {
		t.Error(err)
	}
	if got, want := read(t, d, "n1/ctl"), "drain\nlabel rack=r1\n"; got != want {
		t.Errorf("got settings %q, want %q", got, want)
	}
	if err := write(t, d, "n1/ctl", read(t, d, "n1/ctl")+"undrain\n"); err != nil {
		t.Errorf("settings cannot be written back: %v", err)
	}
	if got := read(t, d, "n1/status.json"); !strings.Contains(got, `"state":"up"`) || !strings.Contains(got, `"label":"rack=r1"`) {
		t.Errorf("got %s", got)
	}
	if err := write(t, d, "n1/ctl", "decommission"); err != nil {
		t.Error(err)
	}
	if got := read(t, d, "n1/status"); !strings.Contains(got, "\ndecommission when nothing is left\n") || !strings.Contains(got, "\nleft group kv/0 is placed on it\n") {
		t.Errorf("got status %q", got)
	}
	if got, want := read(t, d, "n1/ctl"), "decommission\nlabel rack=r1\n"; got != want {
		t.Errorf("got settings %q, want %q", got, want)
	}
	for text, says := range map[string]string{
		"label": "no label", "label x": "KEY=VALUE", "drain now": "no words", "rm n1": "the node n2", "reboot": "there are: drain, undrain, decommission, label, rm",
	} {
		if err := write(t, d, "n2/ctl", text); !errors.Is(err, dc.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want one that says %q", text, err, says)
		}
	}
	if err := write(t, d, "n2/ctl", "rm"); err != nil {
		t.Error(err)
	}
	if _, err := find(t, d, "n2"); !errors.Is(err, dc.NotFound) {
		t.Errorf("got %v for a removed node, want %v", err, dc.NotFound)
	}
}
