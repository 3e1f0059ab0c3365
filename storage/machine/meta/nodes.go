package meta

import (
	"bytes"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// maxTokens bounds the join tokens stored at a time.
const maxTokens = 1000

// sweepTokens is how many old tokens one command removes at most.
const sweepTokens = 32

// mintToken stores a token and removes some of those that have expired.
func mintToken(tx storage.Tx, op *command.MetaMintToken) (*command.MetaResult, error) {
	c, err := mustCluster(tx, "mint token")
	if err != nil {
		return nil, err
	}
	var expired [][]byte
	for key, value := range tx.Scan(prefix([]byte{rowToken})) {
		var t command.MetaToken
		if decode(value, &t); t.ExpiresMs <= tx.Clock() {
			expired = append(expired, bytes.Clone(key))
		}
		if len(expired) == sweepTokens {
			break
		}
	}
	if int(c.Tokens)-len(expired) >= maxTokens {
		return nil, dc.Errorf(dc.NoSpace, "mint token", "", "%d join tokens are stored, the limit: wait until some expire", maxTokens)
	}
	for _, key := range expired {
		tx.Delete(key)
	}
	c.Tokens = c.Tokens - uint32(len(expired)) + 1
	tx.Set(clusterKey, encode(c))
	tx.Set(tokenKey(op.Hash), encode(&command.MetaToken{ExpiresMs: op.ExpiresMs}))
	return &command.MetaResult{}, nil
}

// admit spends a token on a new node.
func admit(tx storage.Tx, op *command.MetaAdmit) (*command.MetaResult, error) {
	c, err := mustCluster(tx, "join")
	if err != nil {
		return nil, err
	}
	var t command.MetaToken
	if !load(tx, tokenKey(op.Hash), &t) {
		return nil, dc.Errorf(dc.Denied, "join", "", "the cluster does not know this join token (mistyped, or expired long ago): make a new one with `dcctl node token`")
	}
	if t.ExpiresMs <= tx.Clock() {
		return nil, dc.Errorf(dc.Denied, "join", "", "the join token has expired: make a new one with `dcctl node token`")
	}
	if t.Node != 0 {
		n, ok := Node(tx, dc.NodeID(t.Node))
		if ok && bytes.Equal(t.KeyHash, op.KeyHash) && n.State == command.MetaNode_STATE_ACTIVE {
			return &command.MetaResult{Node: n}, nil // the answer was lost
		}
		return nil, dc.Errorf(dc.Denied, "join", "", "the join token has been used already: a token admits one node once, make a new one with `dcctl node token`")
	}
	if err := nameFree(tx, op.Name); err != nil {
		return nil, err
	}
	c.LastNode++
	n := &command.MetaNode{
		Id: c.LastNode, Name: op.Name, Address: op.Address, State: command.MetaNode_STATE_ACTIVE, JoinedMs: tx.Clock(), KeyHash: op.KeyHash,
	}
	t.Node, t.KeyHash = n.Id, op.KeyHash
	tx.Set(clusterKey, encode(c))
	tx.Set(tokenKey(op.Hash), encode(&t))
	putNode(tx, n)
	return &command.MetaResult{Node: n}, nil
}

// nameFree checks that name can be a node's and is not.
func nameFree(tx storage.Tx, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	for n := range Nodes(tx) {
		if n.Name == name && n.State == command.MetaNode_STATE_ACTIVE {
			return dc.Errorf(dc.Exists, "join", name, "a node of that name is in the cluster (%s): choose another with --name, or remove it with `dcctl node rm`", dc.NodeID(n.Id))
		}
	}
	return nil
}

// CheckName checks a node's name: up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit, and not
// like a node id (n1), so that a name and an id are never confused.
func CheckName(name string) error {
	letter := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	}
	ok := name != "" && len(name) <= 63 && letter(rune(name[0])) &&
		strings.IndexFunc(name, func(r rune) bool { return !letter(r) && !strings.ContainsRune("._-", r) }) < 0
	if !ok {
		return dc.Errorf(dc.Invalid, "node name", name, "want up to 63 letters, digits, dots, dashes and underscores, a letter or digit first")
	}
	return nil
}

// register notes where a starting node listens and what it runs.
func register(tx storage.Tx, op *command.MetaRegister) (*command.MetaResult, error) {
	n, err := activeNode(tx, "register", dc.NodeID(op.Node))
	if err != nil {
		return nil, err
	}
	before := proto.CloneOf(n)
	n.Address, n.Version = op.Address, op.Version
	if err := label(n, op.SetLabels); err != nil {
		return nil, err
	}
	if !proto.Equal(before, n) {
		putNode(tx, n)
	}
	return &command.MetaResult{Node: n}, nil
}

func setNode(tx storage.Tx, op *command.MetaSetNode) (*command.MetaResult, error) {
	n, err := activeNode(tx, "change node", dc.NodeID(op.Node))
	if err != nil {
		return nil, err
	}
	before := proto.CloneOf(n)
	if op.Drain != nil {
		n.Drain = *op.Drain
		n.Decommission = n.Decommission && n.Drain
	}
	if op.Decommission != nil {
		n.Decommission = *op.Decommission
		n.Drain = n.Drain || n.Decommission
	}
	if err := label(n, op.SetLabels); err != nil {
		return nil, err
	}
	if !proto.Equal(before, n) {
		putNode(tx, n)
	}
	return &command.MetaResult{Node: n}, nil
}

// label sets labels of n; an empty value removes one.
func label(n *command.MetaNode, labels map[string]string) error {
	for k, v := range labels { // each key its own field: the order does not matter
		if v == "" {
			delete(n.Labels, k)
			continue
		}
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[k] = v
	}
	if len(n.Labels) > maxLabels {
		return dc.Errorf(dc.TooLarge, "change node", n.Name, "%d labels exceed the limit of %d", len(n.Labels), maxLabels)
	}
	return nil
}

// maxLabels bounds the labels of a node.
const maxLabels = 64

// removeNode marks a node as gone. Where its replicas go is for the controller to say.
func removeNode(tx storage.Tx, op *command.MetaRemoveNode) (*command.MetaResult, error) {
	n, ok := Node(tx, dc.NodeID(op.Node))
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "remove node", dc.NodeID(op.Node).String(), "there is no such node")
	}
	if n.State == command.MetaNode_STATE_REMOVED {
		return &command.MetaResult{Node: n}, nil
	}
	if op.IfEmpty {
		if err := empty(tx, n); err != nil {
			return nil, err
		}
	}
	active := 0
	for other := range Nodes(tx) {
		if other.State == command.MetaNode_STATE_ACTIVE {
			active++
		}
	}
	if active == 1 {
		return nil, dc.Errorf(dc.Invalid, "remove node", n.Name, "it is the cluster's last node")
	}
	n.State = command.MetaNode_STATE_REMOVED
	putNode(tx, n)
	return &command.MetaResult{Node: n}, nil
}

// empty checks that n is still to be decommissioned and that no group should be on it.
func empty(tx storage.Tx, n *command.MetaNode) error {
	if !n.Decommission {
		return dc.Errorf(dc.Conflict, "remove node", n.Name, "it is not to be decommissioned any more")
	}
	for g := range Groups(tx) {
		if slices.Contains(g.Nodes, n.Id) {
			return dc.Errorf(dc.Busy, "remove node", n.Name, "group %s is still placed on it", g.Name)
		}
	}
	return nil
}

func activeNode(tx storage.Tx, op string, id dc.NodeID) (*command.MetaNode, error) {
	n, ok := Node(tx, id)
	if !ok {
		return nil, dc.Errorf(dc.NotFound, op, id.String(), "there is no such node")
	}
	if n.State != command.MetaNode_STATE_ACTIVE {
		return nil, dc.Errorf(dc.Denied, op, n.Name, "the node has been removed from the cluster")
	}
	return n, nil
}

// place changes where a group should be.
func place(tx storage.Tx, op *command.MetaPlace) (*command.MetaResult, error) {
	g, ok := Group(tx, dc.GroupID(op.Group))
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "place", dc.GroupID(op.Group).String(), "there is no such group")
	}
	if g.Version != op.IfVersion {
		return nil, dc.Errorf(dc.Conflict, "place", g.Name, "the record has changed (version %d, expected %d)", g.Version, op.IfVersion)
	}
	nodes := slices.Clone(op.Nodes)
	slices.Sort(nodes)
	if len(nodes) == 0 || len(slices.Compact(slices.Clone(nodes))) != len(nodes) {
		return nil, dc.Errorf(dc.Invalid, "place", g.Name, "want at least one node, each once; got %v", op.Nodes)
	}
	for _, id := range nodes {
		if _, err := activeNode(tx, "place "+g.Name, dc.NodeID(id)); err != nil && !slices.Contains(g.Nodes, id) {
			return nil, err
		}
	}
	if op.Prefer != nil && *op.Prefer != 0 && !slices.Contains(nodes, *op.Prefer) {
		return nil, dc.Errorf(dc.Invalid, "place", g.Name, "%s cannot lead it without a replica", dc.NodeID(*op.Prefer))
	}
	before := proto.CloneOf(g)
	g.Nodes = nodes
	if op.Pinned != nil {
		g.Pinned = *op.Pinned
	}
	if op.Prefer != nil {
		g.Prefer = *op.Prefer
	}
	if !slices.Contains(nodes, g.Prefer) {
		g.Prefer = 0
	}
	if !proto.Equal(before, g) {
		putGroup(tx, g)
	}
	return &command.MetaResult{Group: g}, nil
}

func groupStarted(tx storage.Tx, op *command.MetaGroupStarted) (*command.MetaResult, error) {
	g, ok := Group(tx, dc.GroupID(op.Group))
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "group started", dc.GroupID(op.Group).String(), "there is no such group")
	}
	if g.Bootstrap != 0 {
		g.Bootstrap = 0
		putGroup(tx, g)
	}
	return &command.MetaResult{Group: g}, nil
}
