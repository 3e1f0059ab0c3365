package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/node"
)

// compare has a group's content compared, asked of node i.
func (c *Cluster) compare(t *testing.T, i int, g dc.GroupID) *dcpb.AdminCompareGroupReply {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+filepath.Join(c.nodes[i-1].dir, node.SocketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for try := 0; ; try++ {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		r, err := dcpb.NewAdminClient(cc).CompareGroup(ctx, &dcpb.AdminCompareGroupRequest{Header: &dcpb.Header{}, Group: uint64(g)})
		cancel()
		whole := err == nil
		for _, x := range r.GetReplicas() {
			whole = whole && x.Err == "" // it may still be fetched
		}
		if whole {
			return r
		}
		if try == 100 {
			t.Fatal(r, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// A replica whose files are damaged does not keep its node from starting: it is set aside and fetched anew.
func TestADamagedReplicaIsFetchedAnew(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	for i := range 10 {
		c.put(t, i%3+1, fmt.Sprint("t", i))
	}
	c.Stop(2)
	manifests, err := filepath.Glob(filepath.Join(c.nodes[1].dir, "groups", dc.MetaGroup.String(), "shard", "*", "MANIFEST"))
	if err != nil || len(manifests) != 1 {
		t.Fatal(manifests, err)
	}
	b, err := os.ReadFile(manifests[0])
	if err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if err := os.WriteFile(manifests[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	c.put(t, 1, "while it was down")
	c.Restart(2)
	c.WaitWhole()
	c.has(t, 2, "while it was down")
	for asked := 1; asked <= 3; asked++ { // whoever leads
		r := c.compare(t, asked, dc.MetaGroup)
		if len(r.Replicas) != 3 || r.Undecided {
			t.Errorf("compared: %v", r)
		}
		for _, x := range r.Replicas {
			if x.Differs || x.Err != "" || x.Rows < 11 {
				t.Errorf("after it was fetched: %v", x)
			}
		}
	}
	kept, err := filepath.Glob(filepath.Join(c.nodes[1].dir, "aside", dc.MetaGroup.String()+"-*", "*", "MANIFEST"))
	if err != nil || len(kept) != 1 {
		t.Errorf("the damaged state is not kept: %v %v", kept, err)
	}
}
