package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/data"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

const (
	// checkPageTimeout bounds one page of a check; the one that counts all extents takes longest.
	checkPageTimeout = 10 * time.Minute
	checkListed      = 512 // blocks of a node's store that are looked up at a time
)

// DataStatus tells how the blocks of files are.
func (a *adminServer) DataStatus(ctx context.Context, _ *dcpb.AdminDataStatusRequest) (*dcpb.DataCareReply, error) {
	return a.n.files.Care(dc.WithPrincipal(ctx, dc.System(a.n.id.Node)))
}

// DataCheck checks files and blocks part by part.
func (a *adminServer) DataCheck(req *dcpb.AdminDataCheckRequest, out grpc.ServerStreamingServer[dcpb.AdminDataCheckReply]) error {
	ctx := dc.WithPrincipal(out.Context(), dc.System(a.n.id.Node))
	for _, part := range data.CheckParts() {
		if err := a.checkPart(ctx, part, req, out); err != nil {
			return err
		}
	}
	st, err := a.n.files.Care(ctx)
	if err != nil {
		return err
	}
	for _, s := range st.Stores {
		if err := a.checkStore(ctx, s, req.Repair, out); err != nil {
			return err
		}
	}
	return nil
}

func (a *adminServer) checkPart(ctx context.Context, part string, req *dcpb.AdminDataCheckRequest, out grpc.ServerStreamingServer[dcpb.AdminDataCheckReply]) error {
	q := &dcpb.DataCheckRequest{Part: part, Read: req.Read, Repair: req.Repair}
	checked := uint64(0)
	for {
		page, cancel := context.WithTimeout(ctx, checkPageTimeout)
		r, err := a.n.files.Check(page, q)
		cancel()
		if err != nil {
			return err
		}
		checked += r.Checked
		done := len(r.Next) == 0
		if done || len(r.Findings) > 0 {
			if err := out.Send(&dcpb.AdminDataCheckReply{Part: part, Checked: checked, Done: done, Findings: r.Findings}); err != nil {
				return err
			}
		}
		if done {
			return nil
		}
		q.From = r.Next
	}
}

// checkStore looks for blocks in a node's store that should not be there.
func (a *adminServer) checkStore(ctx context.Context, s *dcpb.DataStore, repair bool, out grpc.ServerStreamingServer[dcpb.AdminDataCheckReply]) error {
	n, reply := dc.NodeID(s.Node), &dcpb.AdminDataCheckReply{Part: "store of " + s.Name, Done: true}
	find := func(what, where, format string, args ...any) {
		reply.Findings = append(reply.Findings, &dcpb.DataFinding{What: what, Where: where, Text: fmt.Sprintf(format, args...)})
	}
	if s.State == "down" || s.State == "dead" {
		find("unasked", "node "+s.Name, "it is %s: nobody has looked at what it stores", s.State)
		return out.Send(reply)
	}
	wrong := 0
	for after := (file.BlockID{}); ; {
		page, err := a.n.files.ListBlocks(ctx, n, after, checkListed)
		if err != nil {
			find("unasked", "node "+s.Name, "%v", err)
			break
		}
		ids := make([]file.BlockID, len(page))
		for i, b := range page {
			ids[i], after = b.Block, b.Block
		}
		places, err := a.n.files.Locate(ctx, ids)
		if err != nil {
			return err
		}
		for i, b := range page {
			switch {
			case slices.Contains(places[i], n):
			case len(places[i]) > 0:
				wrong++
				find("surplus", "block "+b.Block.String(), "%s has a copy that does not count", s.Name)
			case b.Age >= file.OrphanAge:
				wrong++
				find("orphan", "block "+b.Block.String(), "%s has had it for %s, and no file references it", s.Name, b.Age.Round(time.Minute))
			}
		}
		reply.Checked += uint64(len(page))
		if len(page) < checkListed {
			break
		}
	}
	if repair && wrong > 0 {
		if deleted, err := a.n.files.CollectBlocks(ctx, n); err != nil {
			find("unasked", "node "+s.Name, "it does not collect: %v", err)
		} else if deleted >= wrong {
			for _, f := range reply.Findings {
				f.Mended = true
			}
		}
	}
	return out.Send(reply)
}
