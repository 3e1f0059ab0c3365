package transport

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
)

// A Sink takes a state that is streamed.
type Sink interface {
	// Begin says after which entry the state is.
	Begin(version uint64) error
	io.Writer
}

// A Stream is a state that another node sends. Reading fails when nothing arrives for a while; Close gives it up.
type Stream struct {
	Version uint64 // the entry after which the state is; zero from a sender of an earlier version, which does not say
	stream  grpc.ServerStreamingClient[PullChunk]
	cancel  context.CancelFunc
	rest    []byte
}

// Pull opens the state of n's replica as a stream, as p says; From is filled in. It blocks until the sender has begun. With dc.Stale n does not
// have the state that p asks for.
func (t *Transport) Pull(ctx context.Context, n dc.NodeID, p *PullRequest) (*Stream, error) {
	c, err := t.client(n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p.From = uint64(t.cfg.Node)
	stream, err := c.Pull(ctx, p)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &Stream{stream: stream, cancel: cancel}
	first, err := s.chunk()
	if err == nil && first.Gone {
		err = dc.Errorf(dc.Stale, "pull", n.String(), "the state after entry %d is not there", p.At)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s.Version, s.rest = first.Version, first.Data
	return s, nil
}

// chunk receives one; a timer cancels the stream when it stalls.
func (s *Stream) chunk() (*PullChunk, error) {
	stall := time.AfterFunc(pullStall, s.cancel)
	defer stall.Stop()
	return s.stream.Recv()
}

// Read implements io.Reader.
func (s *Stream) Read(b []byte) (int, error) {
	for len(s.rest) == 0 {
		c, err := s.chunk()
		if err != nil {
			return 0, err
		}
		s.rest = c.Data
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (s *Stream) Close() error {
	s.cancel()
	return nil
}

// Hold asks n to keep the state of its replica of g after entry at. A node of an earlier version cannot; that is an error, too.
func (t *Transport) Hold(ctx context.Context, n dc.NodeID, g dc.GroupID, at uint64) error {
	c, err := t.client(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	_, err = c.Hold(ctx, &HoldRequest{From: uint64(t.cfg.Node), Group: uint64(g), At: at})
	return err
}

// Pull streams this node's replica.
func (s service) Pull(r *PullRequest, out grpc.ServerStreamingServer[PullChunk]) error {
	l, err := s.t.lane(out.Context(), r.From, r.Group)
	if err != nil {
		return err
	}
	w := &chunkWriter{stream: out}
	err = l.replica.Pull(out.Context(), r, w)
	if errors.Is(err, dc.Stale) && r.At != 0 && !w.begun {
		return out.Send(&PullChunk{Gone: true})
	}
	return err
}

// Hold keeps a state of this node's replica.
func (s service) Hold(ctx context.Context, r *HoldRequest) (*HoldReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	return &HoldReply{}, l.replica.Hold(ctx, r.At)
}

// chunkWriter is the sender's end of a Stream. A receiver of an earlier version passes over the first chunk, which has no data.
type chunkWriter struct {
	stream grpc.ServerStreamingServer[PullChunk]
	begun  bool
}

var _ Sink = (*chunkWriter)(nil)

func (w *chunkWriter) Begin(version uint64) error {
	w.begun = true
	return w.stream.Send(&PullChunk{Version: version})
}

func (w *chunkWriter) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		n := min(len(b)-sent, pullChunkBytes)
		if err := w.stream.Send(&PullChunk{Data: append([]byte(nil), b[sent:sent+n]...)}); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(b), nil
}
