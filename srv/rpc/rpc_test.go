package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestErrorsSurviveTheWire(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want *dc.Error
	}{
		{"full", dc.Errorf(dc.TooLarge, "kv.put", "users/ada", "value %d MiB exceeds the 1 MiB limit", 9), dc.Errorf(dc.TooLarge, "kv.put", "users/ada", "value 9 MiB exceeds the 1 MiB limit")},
		{"bare kind", dc.NotFound, &dc.Error{Kind: dc.NotFound}},
		{"leader", &dc.Error{Op: "propose", Kind: dc.NotLeader, Leader: 3}, &dc.Error{Op: "propose", Kind: dc.NotLeader, Leader: 3}},
		{"wrapped", dc.Wrap(dc.Errorf(dc.Exists, "create", "a", ""), "kv.txn", "t"), dc.Errorf(dc.Exists, "kv.txn", "t", "create a: exists")},
		{"foreign", io.ErrUnexpectedEOF, &dc.Error{Kind: dc.Internal, Err: io.ErrUnexpectedEOF}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := errors.AsType[*dc.Error](FromStatus(ToStatus(tt.err)))
			if !ok {
				t.Fatalf("got %T, want *dc.Error", FromStatus(ToStatus(tt.err)))
			}
			if got.Kind != tt.want.Kind || got.Op != tt.want.Op || got.Path != tt.want.Path || got.Leader != tt.want.Leader {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if tt.name != "bare kind" && got.Error() != tt.want.Error() {
				t.Errorf("text %q, want %q", got.Error(), tt.want.Error())
			}
		})
	}
}

func TestRefusedConnectionIsUnavailable(t *testing.T) {
	cc, err := grpc.NewClient("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	_, err = health.NewHealthClient(cc).Check(t.Context(), &health.HealthCheckRequest{})
	if got := FromStatus(err); !errors.Is(got, dc.Unavailable) {
		t.Errorf("got %v, want unavailable", got)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	p := dc.Principal{UID: 1, GID: 2, Groups: []uint32{3, 4}, Node: 5, PID: 6, Command: "cat", Job: "web"}
	if diff := cmp.Diff(Principal(&dcpb.Header{Principal: PrincipalHeader(p)}), p); diff != "" {
		t.Error(diff)
	}
	want := dc.RequestID{Client: 9, Seq: 8, Done: 7, Issued: 6}
	if got := RequestID(&dcpb.Header{Client: 9, Seq: 8, Done: 7, IssuedMs: 6}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestANodeSpeaksOnlyForItself(t *testing.T) {
	a := &Admit{
		Peer: func(context.Context) (dc.NodeID, bool) { return 2, true },
		Open: map[string]bool{"/open": true},
	}
	of := func(n dc.NodeID) any {
		return &metaRequest{h: &dcpb.Header{Principal: PrincipalHeader(dc.Principal{Node: n})}}
	}
	tests := []struct {
		name, method string
		req          any
		want         error
	}{
		{"own principal", "/m", of(2), nil},
		{"another node's principal", "/m", of(3), dc.Denied},
		{"no header", "/m", &metaRequest{}, dc.Invalid},
		{"open method", "/open", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := a.check(t.Context(), tt.method, tt.req); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	stranger := &Admit{Peer: func(context.Context) (dc.NodeID, bool) { return 0, false }}
	if err := stranger.check(t.Context(), "/m", of(0)); !errors.Is(err, dc.Denied) {
		t.Errorf("a peer without certificate got %v, want denied", err)
	}
}

type metaRequest struct{ h *dcpb.Header }

func (r *metaRequest) GetHeader() *dcpb.Header { return r.h }

// hung hears how calls that hang have ended.
var hung = make(chan error, 1)

// A beat is a service to call: Check echoes, hangs or fails, Watch sends three answers and then fails or ends.
type beat struct {
	health.UnimplementedHealthServer
}

func (beat) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	switch r.Service {
	case "fail":
		return nil, dc.Errorf(dc.Busy, "check", r.Service, "")
	case "panic":
		panic("boom")
	case "hang":
		<-ctx.Done()
		hung <- ctx.Err()
		return nil, ctx.Err()
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func (beat) Watch(r *health.HealthCheckRequest, s grpc.ServerStreamingServer[health.HealthCheckResponse]) error {
	if r.Service == "hang" {
		<-s.Context().Done()
		return s.Context().Err()
	}
	for i := range 3 {
		if err := s.Send(&health.HealthCheckResponse{Status: health.HealthCheckResponse_ServingStatus(i)}); err != nil {
			return err
		}
	}
	if r.Service == "fail" {
		return dc.Errorf(dc.Stale, "watch", "", "")
	}
	return nil
}

// conns gives the same service in process and over a socket: both must behave the same.
func conns(t *testing.T) map[string]grpc.ClientConnInterface {
	t.Helper()
	local := NewLocal()
	health.RegisterHealthServer(local, beat{})
	admit := &Admit{Open: map[string]bool{"/grpc.health.v1.Health/Check": true, "/grpc.health.v1.Health/Watch": true, dcpb.Mux_Carry_FullMethodName: true}}
	srv := grpc.NewServer(grpc.UnaryInterceptor(admit.Unary), grpc.StreamInterceptor(admit.Stream))
	health.RegisterHealthServer(srv, beat{})
	dcpb.RegisterMuxServer(srv, NewMuxServer(local, admit.Unary))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(lis) }()
	remote, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	shared := NewMux(remote)
	waitLink(t, shared)
	t.Cleanup(func() { shared.Close(); remote.Close(); srv.Stop(); <-done })
	return map[string]grpc.ClientConnInterface{"local": local, "socket": remote, "shared stream": shared}
}

func TestCallsInProcessBehaveLikeCallsOverASocket(t *testing.T) {
	for name, cc := range conns(t) {
		t.Run(name, func(t *testing.T) {
			c := health.NewHealthClient(cc)
			got, err := c.Check(t.Context(), &health.HealthCheckRequest{})
			if err != nil || got.Status != health.HealthCheckResponse_SERVING {
				t.Errorf("got %v, %v", got, err)
			}
			if _, err := c.Check(t.Context(), &health.HealthCheckRequest{Service: "fail"}); !errors.Is(FromStatus(err), dc.Busy) {
				t.Errorf("got %v, want busy", err)
			}
			for service, want := range map[string]error{"": nil, "fail": dc.Stale} {
				s, err := c.Watch(t.Context(), &health.HealthCheckRequest{Service: service})
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for {
					m, err := s.Recv()
					if err == nil {
						if int(m.Status) != n {
							t.Errorf("message %d says %d", n, m.Status)
						}
						n++
						continue
					}
					if n != 3 {
						t.Errorf("%d messages, want 3", n)
					}
					if want == nil && !errors.Is(err, io.EOF) || want != nil && !errors.Is(FromStatus(err), want) {
						t.Errorf("stream %q ended with %v, want %v", service, err, want)
					}
					break
				}
			}
		})
	}
}

func TestStreamEndsWithItsContext(t *testing.T) {
	for name, cc := range conns(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			s, err := health.NewHealthClient(cc).Watch(ctx, &health.HealthCheckRequest{Service: "hang"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); !errors.Is(FromStatus(err), dc.Unavailable) {
				t.Errorf("got %v, want the deadline as unavailable", err)
			}
		})
	}
}

func TestAPanicInAServiceIsAnErrorOfThatCall(t *testing.T) {
	for name, cc := range conns(t) {
		if name == "local" {
			continue // the panic is the caller's own
		}
		t.Run(name, func(t *testing.T) { panics(t, cc) })
	}
}

func panics(t *testing.T, cc grpc.ClientConnInterface) {
	_, err := health.NewHealthClient(cc).Check(t.Context(), &health.HealthCheckRequest{Service: "panic"})
	if got := FromStatus(err); !errors.Is(got, dc.Internal) {
		t.Errorf("got %v, want internal", got)
	}
	if _, ok := status.FromError(err); !ok {
		t.Errorf("got %T, want a status", err)
	}
}
