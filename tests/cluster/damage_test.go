package cluster

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/srv/client"
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

// flip changes one letter of a stored value in the files of a stopped shard, as a disk or memory may.
func flip(t *testing.T, shard, value string) {
	t.Helper()
	manifests, err := filepath.Glob(filepath.Join(shard, "*", "MANIFEST"))
	if err != nil || len(manifests) != 1 {
		t.Fatal(manifests, err)
	}
	db, err := badger.OpenManaged(badger.DefaultOptions(filepath.Dir(manifests[0])).WithLogger(nil).WithDetectConflicts(false))
	if err != nil {
		t.Fatal(err)
	}
	read := db.NewTransactionAt(math.MaxUint64, false)
	rows := read.NewIterator(badger.DefaultIteratorOptions)
	flipped := 0
	for rows.Rewind(); rows.Valid(); rows.Next() {
		b, err := rows.Item().ValueCopy(nil)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte(value)); i >= 0 && flipped == 0 {
			b[i] ^= 1
			flipped++
			write := db.NewTransactionAt(rows.Item().Version(), true)
			if err := write.Set(rows.Item().KeyCopy(nil), b); err != nil {
				t.Fatal(err)
			}
			if err := write.CommitAt(rows.Item().Version(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	rows.Close()
	read.Discard()
	if err := db.Close(); err != nil || flipped != 1 {
		t.Fatal("rows changed: ", flipped, err)
	}
}

// A row that became another on one node's disk is found when the replicas are compared, and that replica is fetched anew, whether or not it leads.
func TestAReplicaThatDiffersIsRebuilt(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	for i := range 10 {
		c.put(t, i%3+1, fmt.Sprint("row", i))
	}
	for _, leads := range []bool{false, true} {
		victim := int(c.group(t, "meta").Leader)
		if !leads {
			victim = victim%3 + 1
		}
		c.Stop(victim)
		flip(t, filepath.Join(c.nodes[victim-1].dir, "groups", dc.MetaGroup.String(), "shard"), "row7")
		c.Restart(victim)
		c.WaitWhole()
		if leads {
			c.Wait("the wrong replica to lead", func(st *dcpb.MetaStatusReply) string {
				if st.Groups[0].Leader == uint64(victim) {
					return ""
				}
				return fmt.Sprint(c.Meta(victim).MoveGroup(t.Context(), client.GroupMove{Group: "meta", Leader: fmt.Sprint("node", victim)}))
			})
		}
		var wrong []uint64
		for _, x := range c.compare(t, 1, dc.MetaGroup).Replicas {
			if x.Differs {
				wrong = append(wrong, x.Node)
			}
		}
		if len(wrong) != 1 || wrong[0] != uint64(victim) {
			t.Fatalf("found to differ: %v, want %d (leads: %v)", wrong, victim, leads)
		}
		c.Wait("all replicas to be alike", func(st *dcpb.MetaStatusReply) string {
			for _, x := range c.compare(t, 1, dc.MetaGroup).Replicas {
				if x.Differs || x.Err != "" {
					return fmt.Sprint(x)
				}
			}
			return ""
		})
		c.WaitWhole()
		c.has(t, victim, "row7")
		kept, err := filepath.Glob(filepath.Join(c.nodes[victim-1].dir, "aside", dc.MetaGroup.String()+"-*"))
		if err != nil || len(kept) == 0 {
			t.Errorf("the wrong state is not kept: %v %v", kept, err)
		}
	}
}
