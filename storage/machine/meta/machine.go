package meta

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Version is the version of the commands that this machine understands.
const Version = 1

// Machine is the state machine. It has no state of its own. It emits each *command.MetaNode and *command.MetaGroup that it changes.
type Machine struct{}

var _ storage.Machine = Machine{}

// New makes one.
func New() storage.Machine { return Machine{} }

// Apply executes one encoded command.MetaCommand; the result is an encoded command.MetaResult.
func (Machine) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	var c command.MetaCommand
	if err := proto.Unmarshal(body, &c); err != nil {
		panic("meta: command does not decode: " + err.Error())
	}
	if c.Version != Version {
		panic(fmt.Sprintf("meta: command version %d, this program knows %d", c.Version, Version))
	}
	res, err := apply(tx, &c)
	if err != nil {
		return nil, err
	}
	return encode(res), nil
}

func apply(tx storage.Tx, c *command.MetaCommand) (*command.MetaResult, error) {
	switch op := c.Op.(type) {
	case *command.MetaCommand_Init:
		return initCluster(tx, op.Init)
	case *command.MetaCommand_MintToken:
		return mintToken(tx, op.MintToken)
	case *command.MetaCommand_Admit:
		return admit(tx, op.Admit)
	case *command.MetaCommand_Register:
		return register(tx, op.Register)
	case *command.MetaCommand_SetNode:
		return setNode(tx, op.SetNode)
	case *command.MetaCommand_RemoveNode:
		return removeNode(tx, op.RemoveNode)
	case *command.MetaCommand_Place:
		return place(tx, op.Place)
	case *command.MetaCommand_GroupStarted:
		return groupStarted(tx, op.GroupStarted)
	case *command.MetaCommand_CreateDescriptor:
		return createDescriptor(tx, op.CreateDescriptor)
	case *command.MetaCommand_MarkDropping:
		return markDropping(tx, op.MarkDropping)
	case *command.MetaCommand_RemoveDescriptor:
		return removeDescriptor(tx, op.RemoveDescriptor)
	}
	panic(fmt.Sprintf("meta: unknown command %T", c.Op))
}

// initCluster writes the first records. Repeated for the same cluster it changes nothing.
func initCluster(tx storage.Tx, op *command.MetaInit) (*command.MetaResult, error) {
	if old, ok := Cluster(tx); ok {
		if old.Cluster != op.Cluster {
			return nil, dc.Errorf(dc.Exists, "init", op.Cluster, "this group is of cluster %s already", old.Cluster)
		}
		return &command.MetaResult{}, nil
	}
	c := &command.MetaCluster{Cluster: op.Cluster, CaCert: op.CaCert, CaKey: op.CaKey, CreatedMs: tx.Clock()}
	c.LastNode = op.Node.Id
	n := proto.CloneOf(op.Node)
	n.State, n.JoinedMs = command.MetaNode_STATE_ACTIVE, tx.Clock()
	putNode(tx, n)
	for _, g := range op.Groups {
		c.LastGroup = max(c.LastGroup, g.Id)
		putGroup(tx, proto.CloneOf(g))
	}
	tx.Set(clusterKey, encode(c))
	return &command.MetaResult{Node: n}, nil
}

func putNode(tx storage.Tx, n *command.MetaNode) {
	n.Record = uint64(tx.Index())
	tx.Set(nodeKey(dc.NodeID(n.Id)), encode(n))
	tx.Emit(n)
}

func putGroup(tx storage.Tx, g *command.MetaGroup) {
	g.Version = uint64(tx.Index())
	tx.Set(groupKey(dc.GroupID(g.Id)), encode(g))
	tx.Emit(g)
}

// mustCluster reads the totals, which are there from the first command on.
func mustCluster(tx storage.Tx, op string) (*command.MetaCluster, error) {
	c, ok := Cluster(tx)
	if !ok {
		return nil, dc.Errorf(dc.Unavailable, op, "", "the cluster is still being made")
	}
	return c, nil
}
