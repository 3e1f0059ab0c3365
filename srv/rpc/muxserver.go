package rpc

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

const (
	muxCalls      = 2 * dc.MaxInFlightPerClient // under way on one stream; more are refused
	muxMethods    = 4096                        // that one stream may name
	muxIdle       = 64                          // goroutines that wait for the next call: their stacks have grown already
	muxReplyBytes = 4 * dc.MiB                  // answers gathered into one message, unless one alone is larger
)

// A MuxServer serves the calls that other nodes' Muxes send.
type MuxServer struct {
	dcpb.UnimplementedMuxServer
	services *Local
	admit    grpc.UnaryServerInterceptor
}

var _ dcpb.MuxServer = (*MuxServer)(nil)

// NewMuxServer serves the unary methods of services. Every call passes admit, with the stream's context, as it would pass the interceptors of a
// gRPC server; so the stream itself needs no admission.
func NewMuxServer(services *Local, admit grpc.UnaryServerInterceptor) *MuxServer {
	return &MuxServer{services: services, admit: admit}
}

// Carry serves one stream. It ends when the stream does, and then waits for the calls under way, whose contexts have ended.
func (s *MuxServer) Carry(st dcpb.Mux_CarryServer) error {
	ctx, stop := context.WithCancel(st.Context())
	r := &muxRoad{
		server: s, ctx: ctx, work: make(chan muxCall), send: func(b []byte) error { return st.Send(&dcpb.MuxFrames{Frames: b}) }, stop: stop,
		calls: map[uint64]context.CancelFunc{}, idle: make(chan struct{}, muxIdle),
	}
	r.room.L = &r.mu
	defer r.wg.Wait()
	defer r.close()
	defer stop()
	for {
		msg, err := st.Recv()
		if err != nil {
			return err
		}
		if err := r.read(msg.Frames); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// A muxRoad is one stream at the server.
type muxRoad struct {
	server *MuxServer
	ctx    context.Context
	wg     sync.WaitGroup
	work   chan muxCall
	idle   chan struct{}      // tokens of waiting goroutines
	send   func([]byte) error // one at a time: by whom has set sending
	stop   context.CancelFunc

	methods []localUnary // by number; only the reader uses it
	names   []string

	mu    sync.Mutex
	calls map[uint64]context.CancelFunc
	out   []byte
	spare []byte // for the next
	// sending: a call's goroutine sends its answer, and then those that have gathered. One that the flow control stops is no loss: it has answered.
	sending bool
	room    sync.Cond // signalled when out is taken, and at the end
	over    bool
}

type muxCall struct {
	id     uint64
	method localUnary
	name   string
	ctx    context.Context
	cancel context.CancelFunc
	body   []byte
}

func (r *muxRoad) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over, r.out = true, nil
	r.room.Broadcast()
}

// read starts the calls of one message.
func (r *muxRoad) read(frames []byte) error {
	d := muxReader{b: frames}
	for len(d.b) > 0 {
		switch kind, id := d.number(), d.number(); kind {
		case frameCancel:
			r.mu.Lock()
			cancel := r.calls[id]
			r.mu.Unlock()
			if cancel != nil {
				cancel()
			}
		case frameCall:
			number := d.number()
			if number == uint64(len(r.methods)) && number < muxMethods {
				name := string(d.body())
				r.methods, r.names = append(r.methods, r.server.services.method(name)), append(r.names, name)
			}
			left, body := d.number(), d.body()
			if d.bad || number >= uint64(len(r.methods)) {
				return errMux
			}
			r.begin(muxCall{id: id, method: r.methods[number], name: r.names[number], body: body}, left)
		default:
			return errMux
		}
		if d.bad {
			return errMux
		}
	}
	return nil
}

// begin hands a call to a goroutine.
func (r *muxRoad) begin(c muxCall, left uint64) {
	if c.method.srv == nil {
		r.reply(c.id, nil, status.Errorf(codes.Unimplemented, "this node does not serve %s", c.name))
		return
	}
	if left > 0 {
		c.ctx, c.cancel = context.WithTimeout(r.ctx, time.Duration(min(left, uint64(dayMicros)))*time.Microsecond)
	} else {
		c.ctx, c.cancel = context.WithCancel(r.ctx)
	}
	r.mu.Lock()
	full := len(r.calls) >= muxCalls
	if !full {
		r.calls[c.id] = c.cancel
	}
	r.mu.Unlock()
	if full {
		c.cancel()
		r.reply(c.id, nil, status.Errorf(codes.Unavailable, "%d calls of one node are under way, the limit", muxCalls))
		return
	}
	select {
	case r.work <- c:
	default:
		r.wg.Go(func() { r.serve(c) })
	}
}

// dayMicros bounds what a caller may say is left, so that it fits a Duration.
const dayMicros = 24 * int64(time.Hour/time.Microsecond)

// serve serves calls until too many others wait for one.
func (r *muxRoad) serve(c muxCall) {
	for {
		r.one(c)
		select {
		case r.idle <- struct{}{}:
		default:
			return
		}
		select {
		case c = <-r.work:
			<-r.idle
		case <-r.ctx.Done():
			return
		}
	}
}

func (r *muxRoad) one(c muxCall) {
	out, err := c.method.desc.Handler(c.method.srv, c.ctx, func(in any) error {
		msg, ok := in.(proto.Message)
		if !ok {
			return status.Errorf(codes.Internal, "%s takes no protobuf message", c.name)
		}
		return proto.Unmarshal(c.body, msg)
	}, r.server.admit)
	c.cancel()
	r.mu.Lock()
	delete(r.calls, c.id)
	r.mu.Unlock()
	msg, _ := out.(proto.Message)
	r.reply(c.id, msg, err)
}

// reply queues an answer; it waits while others fill a message.
func (r *muxRoad) reply(id uint64, msg proto.Message, err error) {
	var failure []byte
	if err != nil {
		failure = encodeStatus(err)
	}
	size := 0
	if err == nil {
		size = proto.Size(msg)
	}
	if r.queue(id, msg, size, failure, err) {
		r.flush()
	}
}

// flush sends what has gathered until there is nothing more.
func (r *muxRoad) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.out) > 0 && !r.over {
		b := r.out
		r.out, r.spare = r.spare, nil
		r.room.Broadcast()
		r.mu.Unlock()
		err := r.send(b)
		r.mu.Lock()
		if cap(b) <= 2*muxCallBytes {
			r.spare = b[:0]
		}
		if err != nil {
			r.stop()
			break
		}
	}
	r.sending = false
}

// queue adds an answer to what is to be sent; true says that the caller is the one to send it.
func (r *muxRoad) queue(id uint64, msg proto.Message, size int, failure []byte, err error) (flush bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.out) > 0 && len(r.out)+size > muxReplyBytes && !r.over {
		r.room.Wait()
	}
	if r.over {
		return false
	}
	begin := len(r.out)
	if err == nil {
		b := binary.AppendUvarint(append(r.out, frameOK), id)
		b = binary.AppendUvarint(b, uint64(size))
		if r.out, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(b, msg); err != nil {
			r.out, failure = b[:begin], encodeStatus(status.Error(codes.Internal, err.Error()))
		}
	}
	if err != nil {
		r.out = appendBody(binary.AppendUvarint(append(r.out, frameError), id), failure)
	}
	if r.sending {
		return false
	}
	r.sending = true
	return true
}

// encodeStatus gives an error's status in bytes.
func encodeStatus(err error) []byte {
	b, failed := proto.Marshal(status.Convert(err).Proto())
	if failed != nil {
		b, _ = proto.Marshal(status.New(codes.Internal, "the error does not encode").Proto())
	}
	return b
}

// decodeStatus is encodeStatus' inverse; it never gives nil.
func decodeStatus(b []byte) error {
	st := status.New(codes.Internal, "").Proto()
	if err := proto.Unmarshal(b, st); err != nil || st.Code == int32(codes.OK) {
		return status.Error(codes.Internal, "an error that does not decode")
	}
	return status.ErrorProto(st)
}
