package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// waitLink calls until the shared stream is open.
func waitLink(t *testing.T, m *Mux) *link {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if l := m.open(); l != nil {
			return l
		}
	}
	t.Fatal("the shared stream does not open")
	return nil
}

func TestCallsOnASharedStreamAreToldApart(t *testing.T) {
	m := conns(t)["shared stream"].(*Mux)
	l := waitLink(t, m)
	c := health.NewHealthClient(m)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 50 {
				service := ""
				if i%2 == 0 {
					service = "fail"
				}
				_, err := c.Check(t.Context(), &health.HealthCheckRequest{Service: service})
				if got := FromStatus(err); service == "" && got != nil || service != "" && !errors.Is(got, dc.Busy) {
					t.Errorf("service %q: got %v", service, got)
				}
			}
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last < 64*50 || len(l.calls) != 0 {
		t.Errorf("%d calls went by the stream and %d are left, want all and none", l.last, len(l.calls))
	}
}

func TestACallerThatGivesUpEndsTheCallOnASharedStream(t *testing.T) {
	m := conns(t)["shared stream"].(*Mux)
	c := health.NewHealthClient(m)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := c.Check(ctx, &health.HealthCheckRequest{Service: "hang"})
	if got := FromStatus(err); !errors.Is(got, dc.Interrupted) {
		t.Errorf("got %v, want interrupted", got)
	}
	if err := <-hung; !errors.Is(err, context.Canceled) {
		t.Errorf("the service saw %v, want that the caller is gone", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = c.Check(ctx, &health.HealthCheckRequest{Service: "hang"})
	if got := FromStatus(err); !errors.Is(got, dc.Unavailable) {
		t.Errorf("got %v, want the deadline as unavailable", got)
	}
	if err := <-hung; err == nil {
		t.Error("the service saw no end of its time")
	}
}

func TestALargeCallDoesNotHoldUpTheSharedStream(t *testing.T) {
	m := conns(t)["shared stream"].(*Mux)
	l := waitLink(t, m)
	if _, err := health.NewHealthClient(m).Check(t.Context(), &health.HealthCheckRequest{Service: strings.Repeat("x", 2*muxCallBytes)}); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != 0 {
		t.Errorf("%d calls went by the shared stream, want none", l.last)
	}
}

func TestAnUnknownMethodOfASharedStreamIsUnsupported(t *testing.T) {
	m := conns(t)["shared stream"].(*Mux)
	err := m.Invoke(t.Context(), "/no.Such/Method", &health.HealthCheckRequest{}, &health.HealthCheckResponse{})
	if got := FromStatus(err); !errors.Is(got, dc.Unsupported) {
		t.Errorf("got %v, want unsupported", got)
	}
}

// The server is of an earlier version, which knows nothing of shared streams.
func TestANodeWithoutSharedStreamsIsCalledDirectly(t *testing.T) {
	srv := grpc.NewServer()
	health.RegisterHealthServer(srv, beat{})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(lis) }()
	cc, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	m := NewMux(cc)
	defer func() { m.Close(); cc.Close(); srv.Stop(); <-done }()
	settled := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.plain
	}
	for deadline := time.Now().Add(10 * time.Second); !settled(); {
		if time.Now().After(deadline) {
			t.Fatal("the server was not found to be plain")
		}
		if _, err := health.NewHealthClient(m).Check(t.Context(), &health.HealthCheckRequest{}); err != nil {
			got := FromStatus(err)
			if !errors.Is(got, dc.Unavailable) { // once, while the stream was thought to be open
				t.Fatal(got)
			}
		}
	}
	if _, err := health.NewHealthClient(m).Check(t.Context(), &health.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
}

// A broken stream leaves the outcome of its calls unknown, and a new one is opened.
func TestABrokenSharedStreamIsUnavailableAndOpensAgain(t *testing.T) {
	m := conns(t)["shared stream"].(*Mux)
	l := waitLink(t, m)
	answer := make(chan error, 1)
	go func() {
		_, err := health.NewHealthClient(m).Check(t.Context(), &health.HealthCheckRequest{Service: "hang"})
		answer <- err
	}()
	for under := 0; under == 0; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		under = len(l.calls)
		l.mu.Unlock()
	}
	l.mu.Lock()
	l.out = append(l.out, 0xff, 0xff, 0xff) // damage
	signal(l.wake)
	l.mu.Unlock()
	if got := FromStatus(<-answer); !errors.Is(got, dc.Unavailable) {
		t.Errorf("got %v, want unavailable", got)
	}
	<-hung
	if again := waitLink(t, m); again == l {
		t.Error("the broken stream is still in use")
	}
}

func TestAStrangersCallsOnASharedStreamAreRefused(t *testing.T) {
	var asked atomic.Int64
	local := NewLocal()
	health.RegisterHealthServer(local, beat{})
	srv := grpc.NewServer()
	dcpb.RegisterMuxServer(srv, NewMuxServer(local, func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		asked.Add(1)
		return nil, status.Error(codes.PermissionDenied, "no")
	}))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(lis) }()
	cc, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	m := NewMux(cc)
	defer func() { m.Close(); cc.Close(); srv.Stop(); <-done }()
	waitLink(t, m)
	_, err = health.NewHealthClient(m).Check(t.Context(), &health.HealthCheckRequest{})
	if got := FromStatus(err); !errors.Is(got, dc.Denied) || asked.Load() != 1 {
		t.Errorf("got %v after %d questions, want denied after one", got, asked.Load())
	}
}

func BenchmarkCalls(b *testing.B) {
	local := NewLocal()
	health.RegisterHealthServer(local, beat{})
	srv := grpc.NewServer()
	health.RegisterHealthServer(srv, beat{})
	dcpb.RegisterMuxServer(srv, NewMuxServer(local, nil))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(lis) }()
	cc, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	m := NewMux(cc)
	defer func() { m.Close(); cc.Close(); srv.Stop(); <-done }()
	for m.open() == nil {
		time.Sleep(time.Millisecond)
	}
	for _, way := range []struct {
		name string
		cc   grpc.ClientConnInterface
	}{{"direct", cc}, {"shared", m}} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", way.name, callers), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(max(1, callers/2))
				c := health.NewHealthClient(way.cc)
				one := func() {
					if _, err := c.Check(context.Background(), &health.HealthCheckRequest{}); err != nil {
						b.Error(err)
					}
				}
				if callers == 1 {
					for b.Loop() {
						one()
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						one()
					}
				})
			})
		}
	}
}
