package rpc

import (
	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// PrincipalHeader gives p its wire form.
func PrincipalHeader(p dc.Principal) *dcpb.Principal {
	return &dcpb.Principal{
		Uid: p.UID, Gid: p.GID, Groups: p.Groups, Node: uint64(p.Node), Pid: p.PID, Command: p.Command, Job: p.Job,
	}
}

// Principal tells who a request speaks for. Services decide by it what the request may do.
func Principal(h *dcpb.Header) dc.Principal {
	p := h.GetPrincipal()
	return dc.Principal{
		UID: p.GetUid(), GID: p.GetGid(), Groups: p.GetGroups(), Node: dc.NodeID(p.GetNode()),
		PID: p.GetPid(), Command: p.GetCommand(), Job: p.GetJob(),
	}
}

// RequestID gives the id under which a mutation takes effect once.
func RequestID(h *dcpb.Header) dc.RequestID {
	return dc.RequestID{
		Client: h.GetClient(), Seq: h.GetSeq(), Done: h.GetDone(), Issued: h.GetIssuedMs(),
		Fence: dc.Fence{Lock: h.GetFence().GetLock(), Token: h.GetFence().GetToken()},
	}
}

// FenceHeader gives f its wire form; nil for none.
func FenceHeader(f dc.Fence) *dcpb.Fence {
	if f.IsZero() {
		return nil
	}
	return &dcpb.Fence{Lock: f.Lock, Token: f.Token}
}
