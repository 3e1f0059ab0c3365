// Package rpc is the seam between plain Go services and gRPC: the one place where a dc.Error becomes a gRPC status and back,
// where a request's [dcpb.Header] becomes a principal and a request id, where every incoming request is admitted
// (who is the peer, may it speak for that principal), where a call to this very node is served without a socket ([Local]), and where small calls to another node share a stream ([Mux], [MuxServer]).
//
// Concepts defined here: [Admit], [Local], [Mux].
//
// Lock order: Mux.mu and a link's mu are never held together, nor across a send.
//
// It does not route requests to leaders (srv/client does) and holds no connections (srv/node does).
package rpc
