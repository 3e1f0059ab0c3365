package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// Small calls between two nodes share one stream of a gRPC connection. A call of its own costs HTTP/2 headers, a stream's state and its share of
// system calls on either side, several times what the call itself does here; on a shared stream it costs its bytes, and calls that come while
// a message is being sent go out in the next one, together. Calls of more than muxCallBytes, streams, and calls to a node that does not know
// of this go beneath, to the connection itself.
//
// A message is any number of frames. Numbers are uvarints; a body is its length and its bytes.
//
//	to the server    0, call number, method number (then its name, when the number is new: they count up from 0), microseconds left (0: no deadline), body
//	                 1, call number: the caller has given up
//	to the caller    0, call number, body: the answer; 1, call number, body: an encoded google.rpc.Status
//
// Both sides end a stream that breaks these rules.
const (
	frameCall   = 0
	frameCancel = 1
	frameOK     = 0
	frameError  = 1

	muxCallBytes  = 128 * dc.KiB // a larger call would hold up those behind it
	muxQueueBytes = 1 * dc.MiB   // waiting to be sent; calls beyond it go beneath
	muxDirect     = 32 * dc.KiB  // a caller sends itself while no more than this is unanswered: less than can block it
	muxRetry      = time.Second  // between attempts to open a stream after one has failed
)

// A Mux is a connection to one node whose small calls share a stream. It must be closed.
type Mux struct {
	cc   grpc.ClientConnInterface
	ctx  context.Context // of streams; ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	link    *link // nil: none is open
	opening bool
	plain   bool      // the node does not know of this, or the Mux is closed
	retry   time.Time // not before
}

var _ grpc.ClientConnInterface = (*Mux)(nil)

// NewMux makes one over a connection, which stays the caller's to close, after the Mux. Nothing is sent yet.
func NewMux(cc grpc.ClientConnInterface) *Mux {
	ctx, stop := context.WithCancel(context.Background())
	return &Mux{cc: cc, ctx: ctx, stop: stop}
}

// Close ends all calls under way with Unavailable and waits until nothing is sent any more.
func (m *Mux) Close() {
	m.mu.Lock()
	m.plain = true
	m.mu.Unlock()
	m.stop()
	m.wg.Wait()
}

// NewStream opens a stream of the connection beneath.
func (m *Mux) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return m.cc.NewStream(ctx, d, method, opts...)
}

// Invoke makes one call. Call options are for calls that go beneath; small calls have none that matter here.
func (m *Mux) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	in, ok := args.(proto.Message)
	out, ok2 := reply.(proto.Message)
	if !ok || !ok2 {
		return m.cc.Invoke(ctx, method, args, reply, opts...)
	}
	size := proto.Size(in)
	l := m.open()
	if l == nil || size > muxCallBytes {
		return m.cc.Invoke(ctx, method, args, reply, opts...)
	}
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	id, answer, ok := l.call(ctx, method, in, size)
	if !ok {
		return m.cc.Invoke(ctx, method, args, reply, opts...)
	}
	select {
	case a := <-answer:
		if a.err != nil {
			return a.err
		}
		return proto.Unmarshal(a.body, out)
	case <-ctx.Done():
		l.cancel(id)
		return status.FromContextError(ctx.Err()).Err()
	}
}

// open gives the stream to use; nil for none. The first call after a break goes beneath, so that nobody waits for a stream to open.
func (m *Mux) open() *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link != nil || m.plain || m.opening || time.Now().Before(m.retry) {
		return m.link
	}
	m.opening = true
	m.wg.Go(func() {
		err := m.run()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.opening = false
		m.retry = time.Now().Add(muxRetry)
		if status.Code(err) == codes.Unimplemented {
			m.plain = true
		}
	})
	return nil
}

// run opens a stream and reads it until it breaks.
func (m *Mux) run() error {
	ctx, stop := context.WithCancel(m.ctx)
	defer stop()
	st, err := dcpb.NewMuxClient(m.cc).Carry(ctx)
	if err != nil {
		return err
	}
	l := &link{methods: map[string]uint64{}, calls: map[uint64]muxWait{}, wake: make(chan struct{}, 1)}
	l.send = func(b []byte) error { return st.Send(&dcpb.MuxFrames{Frames: b}) }
	m.mu.Lock()
	m.link = l
	m.mu.Unlock()
	m.wg.Go(func() {
		for {
			select {
			case <-l.wake:
			case <-ctx.Done():
				return
			}
			for l.pass() {
			}
		}
	})
	for err == nil {
		var msg *dcpb.MuxFrames
		if msg, err = st.Recv(); err == nil {
			err = l.answered(msg.Frames)
		}
	}
	m.mu.Lock()
	m.link = nil // before the calls end: their retries must not find it
	m.mu.Unlock()
	l.fail(err)
	return err
}

type muxAnswer struct {
	body []byte
	err  error
}

// A muxWait is a call under way.
type muxWait struct {
	answer chan muxAnswer
	bytes  int
}

// A link is an open stream with the calls under way on it. One goroutine at a time sends: a caller, its own frame and those that have gathered, for
// that is two switches of goroutines less; or, when that could block it (the node reads nothing, and flow control stops what is sent), the link's own.
type link struct {
	wake chan struct{}
	send func([]byte) error // one at a time: by whom has set sending

	mu         sync.Mutex
	out        []byte // frames to send
	spare      []byte // for the next
	sending    bool
	methods    map[string]uint64
	calls      map[uint64]muxWait
	unanswered int    // bytes of calls
	last       uint64 // call number
	over       bool
}

// pass sends what has gathered, unless another does; more says that there is more.
func (l *link) pass() (more bool) {
	l.mu.Lock()
	if l.sending || l.over || len(l.out) == 0 {
		l.mu.Unlock()
		return false
	}
	l.sending = true
	b := l.out
	l.out, l.spare = l.spare, nil
	l.mu.Unlock()
	err := l.send(b) // a failed stream also fails to be read, which ends the link
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sending = false
	if cap(b) <= 2*muxCallBytes { // a burst's buffer is not kept
		l.spare = b[:0]
	}
	return err == nil && len(l.out) > 0
}

// call queues one call; ok is false if it cannot go by this link.
func (l *link) call(ctx context.Context, method string, in proto.Message, size int) (id uint64, answer chan muxAnswer, ok bool) {
	left := uint64(0)
	if at, has := ctx.Deadline(); has {
		left = uint64(max(1, time.Until(at).Microseconds()))
	}
	answer = make(chan muxAnswer, 1)
	id, direct, ok := l.queue(method, in, size, left, answer)
	switch {
	case !ok:
		return 0, nil, false
	case !direct || l.pass(): // what has gathered meanwhile is not this caller's to wait for
		signal(l.wake)
	}
	return id, answer, true
}

// queue adds a call's frame to what is to be sent; direct says that its caller may send.
func (l *link) queue(method string, in proto.Message, size int, left uint64, answer chan muxAnswer) (id uint64, direct, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || len(l.out)+size > muxQueueBytes {
		return 0, false, false
	}
	l.last++
	begin := len(l.out)
	b := binary.AppendUvarint(append(l.out, frameCall), l.last)
	number, known := l.methods[method]
	if !known {
		number = uint64(len(l.methods))
	}
	b = binary.AppendUvarint(b, number)
	if !known {
		b = appendBody(b, method)
	}
	b = binary.AppendUvarint(b, left)
	b = binary.AppendUvarint(b, uint64(size))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, in)
	if err != nil {
		l.out = b[:begin]
		return 0, false, false // the connection beneath says what is wrong
	}
	l.out = b
	l.methods[method] = number
	l.calls[l.last] = muxWait{answer, len(b) - begin}
	l.unanswered += len(b) - begin
	return l.last, l.unanswered <= muxDirect, true
}

func appendBody[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// cancel forgets a call whose caller has given up.
func (l *link) cancel(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	call, under := l.calls[id]
	if !under || l.over {
		return
	}
	l.unanswered -= call.bytes
	delete(l.calls, id)
	l.out = binary.AppendUvarint(append(l.out, frameCancel), id)
	signal(l.wake)
}

// answered hands out the answers of one message.
func (l *link) answered(frames []byte) error {
	d := muxReader{b: frames}
	for len(d.b) > 0 {
		kind, id, body := d.number(), d.number(), d.body()
		if d.bad || kind > frameError {
			return errMux
		}
		a := muxAnswer{body: body}
		if kind == frameError {
			a.err = decodeStatus(body)
		}
		l.mu.Lock()
		call, under := l.calls[id]
		delete(l.calls, id)
		l.unanswered -= call.bytes
		l.mu.Unlock()
		if under {
			call.answer <- a
		}
	}
	return nil
}

// fail ends the calls under way: their outcome is unknown.
func (l *link) fail(err error) {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Unimplemented {
		err = errors.New("the node has ended the stream")
	}
	l.mu.Lock()
	calls := l.calls
	l.over, l.calls, l.out = true, nil, nil
	l.mu.Unlock()
	for _, call := range calls {
		call.answer <- muxAnswer{err: status.Error(codes.Unavailable, err.Error())}
	}
}

var errMux = errors.New("the stream of calls does not decode")

// A muxReader takes a message apart; bad is set at the first damage and stays.
type muxReader struct {
	b   []byte
	bad bool
}

func (d *muxReader) number() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *muxReader) body() []byte {
	n := d.number()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	body := d.b[:n:n]
	d.b = d.b[n:]
	return body
}
