package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// Admit is the gate that every request from another node passes, and the place where service errors become statuses.
// The zero Open admits no method without a header.
type Admit struct {
	// Peer tells which node the peer's certificate names; ok is false for a peer without one.
	Peer func(ctx context.Context) (n dc.NodeID, ok bool)
	// Open lists full method names that need no peer certificate and no header (joining, the Raft transport checks its own).
	Open map[string]bool
	// Observe, if set, is told of every finished request (for metrics).
	Observe func(method string, took time.Duration, err error)
	Log     *slog.Logger
}

type headed interface{ GetHeader() *dcpb.Header }

// check refuses a request whose principal is not of the peer's own node: a node speaks only for callers on it.
func (a *Admit) check(ctx context.Context, method string, req any) error {
	if a.Open[method] {
		return nil
	}
	peer, ok := a.Peer(ctx)
	if !ok {
		return dc.Errorf(dc.Denied, "admit", method, "the peer shows no node certificate of this cluster")
	}
	r, ok := req.(headed)
	if !ok || r.GetHeader() == nil {
		return dc.Errorf(dc.Invalid, "admit", method, "the request has no header")
	}
	if speaker := Principal(r.GetHeader()).Node; speaker != peer {
		return dc.Errorf(dc.Denied, "admit", method, "node %s may not speak for a principal of node %s", peer, speaker)
	}
	return nil
}

// Unary is the gRPC server interceptor for calls.
func (a *Admit) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() {
		a.recovered(recover(), info.FullMethod, &err)
		a.observe(info.FullMethod, start, err)
		err = ToStatus(err)
	}()
	if err := a.check(ctx, info.FullMethod, req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// Stream is the gRPC server interceptor for streams; the first message must carry the header.
func (a *Admit) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() {
		a.recovered(recover(), info.FullMethod, &err)
		a.observe(info.FullMethod, start, err)
		err = ToStatus(err)
	}()
	return next(srv, &admittedStream{ServerStream: ss, admit: a, method: info.FullMethod})
}

func (a *Admit) recovered(p any, method string, err *error) {
	if p == nil {
		return
	}
	*err = dc.Errorf(dc.Internal, "serve", method, "panic: %v", p)
	if a.Log != nil {
		a.Log.Error("request panicked", "method", method, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

func (a *Admit) observe(method string, start time.Time, err error) {
	if a.Observe != nil {
		a.Observe(method, time.Since(start), err)
	}
}

type admittedStream struct {
	grpc.ServerStream
	admit  *Admit
	method string
	once   sync.Once
	err    error
}

// RecvMsg checks the first message of the stream.
func (s *admittedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.once.Do(func() { s.err = s.admit.check(s.Context(), s.method, m) })
	return s.err
}
