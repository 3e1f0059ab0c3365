package meta

import (
	"errors"
	"strings"
	"testing"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
)

func TestNodesOlderThanAllOthersAreRefused(t *testing.T) {
	o, m := start(t, Config{})
	register := func(node dc.NodeID, version string) error {
		return o.client(node).Register(t.Context(), "a:1", version, nil)
	}
	if err := register(1, "0.3.0"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.MintToken(t.Context(), pki.Hash([]byte("s")), time.Minute); err != nil {
		t.Fatal(err)
	}
	key, err := pki.CreateKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	join := func(version string) error {
		_, err := m.Admit(t.Context(), &dcpb.JoinRequest{Csr: csr, Name: "second", Address: "b:1", Version: version}, pki.Hash([]byte("s")))
		return err
	}
	for _, old := range []string{"", "0.2.9"} {
		if err := join(old); !errors.Is(err, dc.Unsupported) || !strings.Contains(err.Error(), "install 0.3.0") {
			t.Errorf("a node of version %q was admitted or not told why not: %v", old, err)
		}
	}
	if err := join("0.3.1"); err != nil { // the token is not spent by refusals
		t.Fatal(err)
	}
	for _, step := range []struct {
		node    dc.NodeID
		version string
		refused bool
	}{
		{node: 2, version: "0.3.1"},
		{node: 1, version: "0.2.0", refused: true}, // all run 0.3.0
		{node: 1, version: "0.3.2"},
		{node: 2, version: "0.3.0", refused: true}, // now all run 0.3.1
		{node: 2, version: "0.3.1"},
		{node: 2, version: "dev"},
	} {
		if err := register(step.node, step.version); errors.Is(err, dc.Unsupported) != step.refused || (err != nil) != step.refused {
			t.Errorf("node %d registers with %s: %v", step.node, step.version, err)
		}
	}
}
