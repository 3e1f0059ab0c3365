package meta

import (
	"strings"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// homes names the group that new descriptors of a kind belong to.
var homes = map[string]string{"table": dc.KindKV, "topic": dc.KindTopic}

func createDescriptor(tx storage.Tx, op *command.MetaCreateDescriptor) (*command.MetaResult, error) {
	c, err := mustCluster(tx, "create")
	if err != nil {
		return nil, err
	}
	if err := checkDescriptorName(op.Kind, op.Name); err != nil {
		return nil, err
	}
	if _, ok := Named(tx, op.Kind, op.Name); ok {
		return nil, dc.Errorf(dc.Exists, "create "+op.Kind, op.Name, "")
	}
	var home *command.MetaGroup
	for g := range Groups(tx) {
		if g.Kind == homes[op.Kind] {
			home = g
			break
		}
	}
	if home == nil {
		return nil, dc.Errorf(dc.Unavailable, "create "+op.Kind, op.Name, "there is no %s group yet", homes[op.Kind])
	}
	c.LastDescriptor++
	d := &command.MetaDescriptor{
		Kind: op.Kind, Name: op.Name, Id: c.LastDescriptor, Group: home.Id, CreatedMs: tx.Clock(), Uid: op.Uid, Gid: op.Gid, Mode: op.Mode,
	}
	tx.Set(clusterKey, encode(c))
	tx.Set(descriptorKey(d.Kind, d.Id), encode(d))
	tx.Set(nameKey(d.Kind, d.Name), tuple.AppendUint(nil, d.Id))
	return &command.MetaResult{Descriptor_: d}, nil
}

func checkDescriptorName(kind, name string) error {
	switch {
	case homes[kind] == "":
		return dc.Errorf(dc.Invalid, "create", name, "unknown kind %q, want table or topic", kind)
	case len(name) > dc.MaxNameBytes:
		return dc.Errorf(dc.NameTooLong, "create "+kind, name, "%d bytes exceed the limit of %d", len(name), dc.MaxNameBytes)
	case name == "" || name == "." || name == ".." || name == ".dc" || strings.ContainsAny(name, "/\x00"):
		return dc.Errorf(dc.Invalid, "create "+kind, name, "this cannot be a name")
	}
	return nil
}

// markDropping frees the name. It may be repeated, also after the record is gone.
func markDropping(tx storage.Tx, op *command.MetaMarkDropping) (*command.MetaResult, error) {
	d, ok := Descriptor(tx, op.Kind, op.Id)
	if !ok || d.Dropping {
		return &command.MetaResult{Descriptor_: d}, nil
	}
	d.Dropping = true
	tx.Delete(nameKey(d.Kind, d.Name))
	tx.Set(descriptorKey(d.Kind, d.Id), encode(d))
	return &command.MetaResult{Descriptor_: d}, nil
}

// removeDescriptor forgets a descriptor. It may be repeated.
func removeDescriptor(tx storage.Tx, op *command.MetaRemoveDescriptor) (*command.MetaResult, error) {
	d, ok := Descriptor(tx, op.Kind, op.Id)
	if !ok {
		return &command.MetaResult{}, nil
	}
	if !d.Dropping {
		tx.Delete(nameKey(d.Kind, d.Name))
	}
	tx.Delete(descriptorKey(d.Kind, d.Id))
	return &command.MetaResult{Descriptor_: d}, nil
}
