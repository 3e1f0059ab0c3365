package data

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"missingos/srv/data/lease"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// leases gives the table of a group.
func (s *Service) leases(g dc.GroupID) *lease.Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tables[g]
	if t == nil {
		t = lease.New(s.cfg.Lease)
		s.tables[g] = t
	}
	return t
}

// applying hears what is about to be committed.
func (s *Service) applying(g dc.GroupID, events []any) {
	for _, e := range events {
		if touched, ok := e.(data.Touched); ok {
			s.leases(g).Applying(touched.Request, touched.Inos)
		}
	}
}

// appliedTo hears what has been committed.
func (s *Service) appliedTo(g dc.GroupID, events []any) {
	for _, e := range events {
		switch e.(type) {
		case data.Touched:
			s.leases(g).Applied()
		case storage.Restored:
			s.leases(g).Replaced()
		}
	}
}

// A look is one read, and what its answer is about.
type look struct {
	table *lease.Table
	conn  *lease.Conn // nil: nothing is granted
	since uint64
	inos  []file.Ino
}

// about notes that the answer is about inos.
func (l *look) about(inos ...uint64) {
	for _, ino := range inos {
		l.inos = append(l.inos, file.Ino(ino))
	}
}

// grant gives leases of what the answer is about, to a caller who wants them.
func (l *look) grant() *dcpb.DataGrant {
	if l.conn == nil {
		return nil
	}
	return &dcpb.DataGrant{Connection: l.conn.ID, Refused: l.conn.Grant(l.since, l.inos...)}
}

// look begins a read.
func (s *Service) look(h *dcpb.Header) *look {
	t := s.leases(dc.GroupID(h.GetGroup()))
	return &look{table: t, conn: t.Conn(h.GetHold().GetConnection()), since: t.Seq()}
}

// fresh gives inodes as they are after a change, with leases, to a caller who wants them.
func (s *Service) fresh(ctx context.Context, r replica.Replica, h *dcpb.Header, out *dcpb.DataAttrReply) {
	hold := h.GetHold()
	l := s.look(h)
	if l.conn == nil {
		return
	}
	l.about(hold.Own...)
	if a := out.Attr; a != nil && !slices.Contains(hold.Own, a.Ino) {
		l.about(a.Ino)
	}
	err := r.Local(func(rd storage.Reader) error {
		for _, ino := range l.inos {
			if in, err := data.Inode(rd, ino); err == nil {
				out.Fresh = append(out.Fresh, attr(in))
			}
		}
		return nil
	})
	if err == nil {
		err = l.table.Settle(ctx, l.inos...)
	}
	if err != nil {
		out.Fresh = nil // the change itself has been made
		return
	}
	out.Grant = l.grant()
}

// settled proposes c as the request of h, and waits until what it did may be seen.
func (s *Service) settled(ctx context.Context, r replica.Replica, h *dcpb.Header, c *command.DataCommand, id dc.RequestID) (*command.DataResult, error) {
	t := s.leases(r.Group())
	hold := h.GetHold()
	req := t.Begin(t.Conn(hold.GetConnection()), hold.GetOwn())
	defer t.End(req)
	c.Request = req.ID
	res, err := propose(ctx, r, id, c)
	if wait := t.SettleRequest(ctx, req); wait != nil && err == nil {
		err = wait
	}
	return res, err
}

// Leases serves a node's connection.
func (s *Service) Leases(stream grpc.BidiStreamingServer[dcpb.DataLeasesRequest, dcpb.DataLeasesReply]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r, _, err := s.admit("lease", first.Header)
	if err != nil {
		return err
	}
	if s.cfg.Leases != nil {
		if err := s.cfg.Leases(); err != nil {
			return err
		}
	}
	open := s.openFiles(r.Group())
	conn, err := s.leases(r.Group()).Connect(first.Session, first.Replaces, func(c *lease.Conn, inos []file.Ino) {
		for _, ino := range inos { // it may have opened them, and cannot say so
			open.opened(c.Session, 0, ino)
		}
	})
	if err != nil {
		return err
	}
	defer conn.Stop()
	v := &leaseStream{stream: stream, conn: conn, replica: r, open: open}
	if err := v.send(&dcpb.DataLeasesReply{Connection: conn.ID, TtlMs: uint32(s.leases(r.Group()).TTL().Milliseconds())}); err != nil {
		return err
	}
	return v.serve()
}

// A leaseStream serves one stream of leases.
type leaseStream struct {
	stream  grpc.BidiStreamingServer[dcpb.DataLeasesRequest, dcpb.DataLeasesReply]
	conn    *lease.Conn
	replica replica.Replica
	open    *opens

	sending sync.Mutex
}

func (v *leaseStream) send(m *dcpb.DataLeasesReply) error {
	v.sending.Lock()
	defer v.sending.Unlock()
	return v.stream.Send(m)
}

// serve tells the node what is revoked and hears what it says, until the stream, the connection or the term ends.
func (v *leaseStream) serve() error {
	ctx, cancel := context.WithCancel(v.stream.Context())
	defer cancel()
	heard := make(chan error, 1)
	renew := make(chan uint64, 1)
	var renewing sync.WaitGroup
	renewing.Go(func() { v.renew(ctx, renew) })
	defer renewing.Wait()
	defer cancel()
	go func() { heard <- v.hear(renew) }() // ends with the stream, which ends with this call
	for {
		select {
		case <-v.conn.Kick():
			for inos, number := v.conn.Told(); len(inos) > 0; inos, number = v.conn.Told() {
				m := &dcpb.DataLeasesReply{Revocation: number}
				for _, ino := range inos {
					m.Revoked = append(m.Revoked, uint64(ino))
				}
				if err := v.send(m); err != nil {
					return err
				}
			}
		case err := <-heard:
			return err
		case <-v.conn.Gone():
			return dc.Errorf(dc.Unavailable, "lease", "", "the connection has ended")
		}
	}
}

// hear takes in what the node says.
func (v *leaseStream) hear(renew chan<- uint64) error {
	for {
		m, err := v.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, ino := range m.Open { // noted before a purge can miss it
			v.open.opened(v.conn.Session, m.Opened, file.Ino(ino))
		}
		if m.Acknowledged > 0 {
			v.conn.Acknowledge(m.Acknowledged)
		}
		if m.Renew > 0 {
			v.conn.Renew()
			select {
			case renew <- m.Renew:
			default: // one is being answered; the node asks again
			}
		}
	}
}

// renew answers renewals once leadership is confirmed.
func (v *leaseStream) renew(ctx context.Context, asked <-chan uint64) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-asked:
			if v.replica.View(ctx, func(storage.Reader) error { return nil }) != nil {
				continue
			}
			if v.send(&dcpb.DataLeasesReply{Renewed: n}) != nil {
				return
			}
		}
	}
}
