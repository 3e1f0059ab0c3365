package synth

import (
	"context"
	"slices"
	"sort"
	"strings"

	"missingos/srv/dc"
)

// A Named is a child of a [Static] directory.
type Named struct {
	Name   string
	Node   Node
	Hidden bool // found by name, never listed: ".dc"
}

// Static is a directory with children that never change, mode 0755, owned by root.
func Static(key string, children ...Named) Dir {
	d := &staticDir{key: key, children: slices.Clone(children)}
	sort.Slice(d.children, func(i, j int) bool { return d.children[i].Name < d.children[j].Name })
	return d
}

type staticDir struct {
	key      string
	children []Named // by name
}

func (d *staticDir) Key() string { return d.key }

func (d *staticDir) Attr(context.Context) (Attr, error) {
	return Attr{IsDir: true, Mode: 0o755}, nil
}

func (d *staticDir) find(name string) (int, bool) {
	return slices.BinarySearchFunc(d.children, name, func(c Named, name string) int { return strings.Compare(c.Name, name) })
}

func (d *staticDir) Lookup(_ context.Context, name string) (Node, error) {
	i, ok := d.find(name)
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "lookup", d.key+"/"+name, "")
	}
	return d.children[i].Node, nil
}

func (d *staticDir) List(ctx context.Context, after string, limit int) ([]DirEntry, error) {
	i, found := d.find(after)
	if found {
		i++
	}
	var out []DirEntry
	for ; i < len(d.children) && len(out) < limit; i++ {
		c := d.children[i]
		if c.Hidden {
			continue
		}
		_, isDir := c.Node.(Dir)
		out = append(out, DirEntry{Name: c.Name, IsDir: isDir, Key: c.Node.Key()})
	}
	return out, nil
}
