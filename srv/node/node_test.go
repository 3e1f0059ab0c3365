package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

func TestConfigReportsAllProblemsAtOnce(t *testing.T) {
	err := (&Config{Listen: "nonsense", Metrics: "9770", DeadAfter: -1}).Validate()
	for _, want := range []string{"--dir", "--listen", "--metrics", "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
	if err := (&Config{Dir: "d"}).Validate(); err != nil {
		t.Errorf("a directory alone: %v", err)
	}
}

func TestAdvertisedAddress(t *testing.T) {
	for _, fixed := range []string{"10.0.0.1:7770", "host.example:7770", "127.0.0.1:1"} {
		if got := advertised(fixed); got != fixed {
			t.Errorf("%s became %s", fixed, got)
		}
	}
	for _, any := range []string{":7770", "0.0.0.0:7770", "[::]:7770"} {
		host, port, err := net.SplitHostPort(advertised(any))
		if ip := net.ParseIP(host); err != nil || port != "7770" || ip == nil || ip.IsUnspecified() {
			t.Errorf("%s became %s", any, advertised(any))
		}
	}
}

func TestWhoMayUseTheAdminSocket(t *testing.T) {
	own := uint32(os.Geteuid())
	tests := []struct {
		name, method string
		uid          uint32
		want         error
	}{
		{"root removes", dcpb.Admin_Remove_FullMethodName, 0, nil},
		{"the daemon's user removes", dcpb.Admin_Remove_FullMethodName, own, nil},
		{"another removes", dcpb.Admin_Remove_FullMethodName, own + 1, dc.Denied},
		{"another makes tokens", dcpb.Admin_Token_FullMethodName, own + 1, dc.Denied},
		{"another looks", dcpb.Admin_Status_FullMethodName, own + 1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: ucred{tt.uid}})
			if err := mayAdminister(ctx, tt.method); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if err := mayAdminister(t.Context(), dcpb.Admin_Status_FullMethodName); !errors.Is(err, dc.Denied) {
		t.Errorf("nobody: %v, want denied", err)
	}
}

// A directory deep enough that its socket's path does not fit into a socket address.
func TestAdminSocketInADeepDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 25))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lis, err := listenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, SocketName)); err != nil {
		t.Error(err)
	}
	if err := lis.Close(); err != nil {
		t.Error(err)
	}
	again, err := listenUnix(dir) // what a killed daemon left is no obstacle
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func startOne(t *testing.T) *Node {
	t.Helper()
	dir := t.TempDir()
	if _, err := Init(dir, "127.0.0.1:0", "one", ""); err != nil {
		t.Fatal(err)
	}
	n, err := Start(Config{Dir: dir, NoMount: true, Metrics: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestStatusAndTokensThroughTheSocket(t *testing.T) {
	n := startOne(t)
	cc, err := grpc.NewClient("unix://"+filepath.Join(n.cfg.Dir, SocketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	c := dcpb.NewAdminClient(cc)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for { // the first answers may come before the cluster is made
		st, err := c.Status(ctx, &dcpb.AdminStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !st.Stale && len(st.Nodes) == 1 && st.Nodes[0].State == "up" && len(st.Groups) == 6 && st.Groups[0].Leader == 1 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("no full status: %v", st)
		}
	}
	token, err := c.Token(ctx, &dcpb.AdminTokenRequest{})
	if err != nil || !strings.HasPrefix(token.Token, "dct1.") {
		t.Errorf("got %v, %v", token, err)
	}
	if _, err := c.Remove(ctx, &dcpb.AdminRemoveRequest{Node: "one"}); !errors.Is(rpc.FromStatus(err), dc.Invalid) {
		t.Errorf("removing the last node: %v, want invalid", err)
	}
	families, err := n.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, want := range []string{"dc_replica_leading", "dc_disk_free_bytes", "go_goroutines", "dc_build_info"} {
		if !names[want] {
			t.Errorf("there is no metric %s", want)
		}
	}
}

func TestTheAuthoritysKeyLeavesTheFirstNodesDirectory(t *testing.T) {
	n := startOne(t)
	path := filepath.Join(n.cfg.Dir, bootstrapFile)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the file with the key is still there")
		}
	}
}

// The labels of a node's start reach the scheduler also before meta's record has them; an empty one removes what the record has.
func TestTheOfferHasTheLabelsOfTheStart(t *testing.T) {
	d := newDirectory(1, t.TempDir(), &dcpb.MetaMap{Nodes: []*dcpb.MetaMapNode{{Id: 1, Labels: map[string]string{"zone": "old", "gpu": "yes", "rack": "r1"}}}}, slog.New(slog.DiscardHandler))
	n := &Node{id: &pki.Identity{Node: 1, Name: "one"}, directory: d, cfg: Config{Labels: map[string]string{"zone": "new", "gpu": ""}}}
	got := n.offer().Labels
	want := map[string]string{"zone": "new", "rack": "r1", "node": "one", "arch": runtime.GOARCH, "os": runtime.GOOS}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}
