package rpc

import (
	"context"
	"io"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"missingos/srv/dc"
)

// Local serves calls of this node to itself without a socket: it is registered with the same services as the gRPC server and is
// a grpc.ClientConnInterface. Messages are passed by reference, so neither side may change one after sending it.
// Errors arrive as the *dc.Error the service returned.
type Local struct {
	mu      sync.RWMutex
	unary   map[string]localUnary
	streams map[string]localStream
}

type localUnary struct {
	srv  any
	desc grpc.MethodDesc
}

type localStream struct {
	srv  any
	desc grpc.StreamDesc
}

var (
	_ grpc.ServiceRegistrar    = (*Local)(nil)
	_ grpc.ClientConnInterface = (*Local)(nil)
)

// NewLocal makes a Local without services.
func NewLocal() *Local {
	return &Local{unary: map[string]localUnary{}, streams: map[string]localStream{}}
}

// RegisterService adds a service's methods.
func (l *Local) RegisterService(d *grpc.ServiceDesc, srv any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range d.Methods {
		l.unary["/"+d.ServiceName+"/"+m.MethodName] = localUnary{srv, m}
	}
	for _, s := range d.Streams {
		l.streams["/"+d.ServiceName+"/"+s.StreamName] = localStream{srv, s}
	}
}

// method finds a unary method; its srv is nil if there is none.
func (l *Local) method(name string) localUnary {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.unary[name]
}

// Invoke calls a unary method in the caller's goroutine; args and reply are the generated message types.
func (l *Local) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	m := l.method(method)
	if m.srv == nil {
		return dc.Errorf(dc.Unsupported, "call", strings.TrimPrefix(method, "/"), "this node does not serve it")
	}
	out, err := m.desc.Handler(m.srv, ctx, func(in any) error { return share(in, args) }, nil)
	if err != nil {
		return err
	}
	return share(reply, out)
}

// share makes dst a shallow copy of src: fields are set, bytes and submessages are not copied.
func share(dst, src any) error {
	d, ok := dst.(proto.Message)
	s, ok2 := src.(proto.Message)
	if !ok || !ok2 {
		return dc.Errorf(dc.Internal, "call", "", "not a protobuf message: %T, %T", dst, src)
	}
	dm := d.ProtoReflect()
	s.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		dm.Set(f, v)
		return true
	})
	return nil
}

// NewStream starts a streaming method in a goroutine of its own, which ends when the handler returns or ctx ends.
func (l *Local) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	l.mu.RLock()
	m, ok := l.streams[method]
	l.mu.RUnlock()
	if !ok {
		return nil, dc.Errorf(dc.Unsupported, "call", strings.TrimPrefix(method, "/"), "this node does not serve it")
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe{ctx: ctx, up: make(chan any, 16), down: make(chan any, 16), done: make(chan struct{})}
	go func() {
		defer cancel()
		defer close(p.done)
		p.err = m.desc.Handler(m.srv, &serverEnd{p})
	}()
	return &clientEnd{p}, nil
}

// A pipe is one in-process stream. err is set before done is closed.
type pipe struct {
	ctx     context.Context
	up      chan any // client to server
	down    chan any // server to client
	closing sync.Once
	done    chan struct{}
	err     error
}

type clientEnd struct{ *pipe }

func (c *clientEnd) Header() (metadata.MD, error) { return nil, nil }
func (c *clientEnd) Trailer() metadata.MD         { return nil }
func (c *clientEnd) Context() context.Context     { return c.ctx }

// CloseSend tells the server that no more messages come.
func (c *clientEnd) CloseSend() error {
	c.closing.Do(func() { close(c.up) })
	return nil
}

// SendMsg hands m to the server; io.EOF once the handler has returned, as gRPC has it.
func (c *clientEnd) SendMsg(m any) error {
	select {
	case c.up <- m:
		return nil
	case <-c.done:
		return io.EOF
	case <-c.ctx.Done():
		return contextError(c.ctx, "send")
	}
}

// RecvMsg waits for the server's next message; io.EOF at the clean end.
func (c *clientEnd) RecvMsg(m any) error {
	select {
	case v := <-c.down:
		return share(m, v)
	case <-c.done:
	case <-c.ctx.Done():
		select {
		case <-c.done:
		default:
			return contextError(c.ctx, "receive")
		}
	}
	select { // what the handler sent before it returned
	case v := <-c.down:
		return share(m, v)
	default:
	}
	if c.err != nil {
		return c.err
	}
	return io.EOF
}

type serverEnd struct{ *pipe }

func (s *serverEnd) SetHeader(metadata.MD) error  { return nil }
func (s *serverEnd) SendHeader(metadata.MD) error { return nil }
func (s *serverEnd) SetTrailer(metadata.MD)       {}
func (s *serverEnd) Context() context.Context     { return s.ctx }

// SendMsg hands m to the client and blocks while its buffer is full.
func (s *serverEnd) SendMsg(m any) error {
	select {
	case s.down <- m:
		return nil
	case <-s.ctx.Done():
		return contextError(s.ctx, "send")
	}
}

// RecvMsg waits for the client's next message; io.EOF after CloseSend.
func (s *serverEnd) RecvMsg(m any) error {
	select {
	case v, ok := <-s.up:
		if !ok {
			return io.EOF
		}
		return share(m, v)
	case <-s.ctx.Done():
		return contextError(s.ctx, "receive")
	}
}
