package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"missingos/srv/dc"
)

// member makes node n of a cluster, stores it in a directory and loads it from there.
func member(t *testing.T, a *Authority, n dc.NodeID) *Identity {
	t.Helper()
	dir := t.TempDir()
	key, err := CreateKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.Sign(csr, n)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(a.cluster, n, "name", key, der, a.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{keyFile, certFile, nodeFile} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", f, st.Mode(), err)
		}
	}
	return loaded
}

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(NewClusterID())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadAuthority(a.cluster, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

// shake makes a TLS connection and gives both ends' errors.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := lis.Accept()
		if err != nil {
			serverErr = err
			return
		}
		c := tls.Server(raw, server)
		defer c.Close()
		if serverErr = c.Handshake(); serverErr == nil {
			state = c.ConnectionState()
			_, serverErr = c.Write([]byte("x"))
		}
	}()
	c, err := tls.Dial("tcp", lis.Addr().String(), client)
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // with TLS 1.3 the server's refusal arrives here
		c.Close()
	}
	<-done
	return state, serverErr, err
}

func TestOnlyMembersOfTheClusterTalk(t *testing.T) {
	a, other := authority(t), authority(t)
	n1, n2, stranger := member(t, a, 1), member(t, a, 2), member(t, other, 2)
	allow := func(dc.NodeID) error { return nil }
	refuse2 := func(n dc.NodeID) error {
		if n == 2 {
			return errors.New("removed")
		}
		return nil
	}
	tests := []struct {
		name           string
		server, client *tls.Config
		ok             bool
	}{
		{"members", n1.Server(allow), n2.Client(1), true},
		{"another node than expected", n1.Server(allow), n2.Client(3), false},
		{"client of another cluster", n1.Server(allow), withoutChecks(stranger.Client(1)), false},
		{"server of another cluster", stranger.Server(allow), n1.Client(2), false},
		{"removed node", n1.Server(refuse2), n2.Client(1), false},
		{"joining, right fingerprint", n1.Server(allow), Pinned(n1.Fingerprint()), true},
		{"joining, wrong fingerprint", n1.Server(allow), Pinned(stranger.Fingerprint()), false},
		{"old TLS", n1.Server(allow), oldTLS(n2.Client(1)), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state, serverErr, clientErr := shake(t, tt.server, tt.client)
			if ok := serverErr == nil && clientErr == nil; ok != tt.ok {
				t.Fatalf("server %v, client %v; want ok=%v", serverErr, clientErr, tt.ok)
			}
			if tt.name == "members" {
				if n, ok := n1.Peer(state); !ok || n != 2 {
					t.Errorf("peer is %s, %v; want n2", n, ok)
				}
			}
			if strings.HasPrefix(tt.name, "joining") {
				if _, ok := n1.Peer(state); ok {
					t.Error("a joining peer has a node id")
				}
			}
		})
	}
}

func withoutChecks(c *tls.Config) *tls.Config {
	c.VerifyConnection = nil
	return c
}

func oldTLS(c *tls.Config) *tls.Config {
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return c
}

func TestAForgedAuthorityInTheChainIsNotBelieved(t *testing.T) {
	a, evil := authority(t), authority(t)
	n1 := member(t, a, 1)
	mallory := member(t, evil, 1)
	// Mallory shows her own certificate followed by the true authority's, which is public.
	conf := mallory.Server(func(dc.NodeID) error { return nil })
	conf.Certificates[0].Certificate[1] = n1.issuer.Raw
	if _, _, err := shake(t, conf, Pinned(n1.Fingerprint())); err == nil {
		t.Error("a certificate that the pinned authority has not signed was accepted")
	}
}

func TestARepeatedKeyIsTheSame(t *testing.T) {
	dir := t.TempDir()
	k1, err := CreateKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	k2, err := CreateKey(dir)
	if err != nil || !k1.Equal(k2) {
		t.Errorf("a second call made another key: %v", err)
	}
}

func TestIdentityRefusesWhatDoesNotBelongTogether(t *testing.T) {
	a := authority(t)
	id := member(t, a, 1)
	otherKey, err := CreateKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewIdentity(a.cluster, 1, "", otherKey, id.leaf.Raw, a.cert.Raw); err == nil {
		t.Error("a certificate of another key was accepted")
	}
	if _, err := NewIdentity(a.cluster, 2, "", id.key, id.leaf.Raw, a.cert.Raw); err == nil {
		t.Error("a certificate of another node was accepted")
	}
	if _, err := LoadIdentity(t.TempDir()); !errors.Is(err, dc.NotFound) {
		t.Errorf("an empty directory gave %v, want not found", err)
	}
	if _, err := a.Sign([]byte("nonsense"), 3); !errors.Is(err, dc.Invalid) {
		t.Errorf("a broken request gave %v, want invalid", err)
	}
	if _, err := x509.ParseCertificate(id.leaf.Raw); err != nil {
		t.Error(err)
	}
}

func TestTokenRoundTrip(t *testing.T) {
	want := NewToken([32]byte{1, 2, 3}, []string{"10.0.0.1:7770", "[::1]:7771"})
	got, err := ParseToken(" " + want.String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "dct1.", "dct1.abc", want.String()[:40], "dct2." + want.String()[5:], "dct1.***"} {
		if _, err := ParseToken(bad); !errors.Is(err, dc.Invalid) {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
	}
}
