// Package rpc is the seam between plain Go services and gRPC: the one place where a dc.Error becomes a gRPC status and back,
// where a request's [dcpb.Header] becomes a principal and a request id, where every incoming request is admitted
// (who is the peer, may it speak for that principal), and where a call to this very node is served without a socket ([Local]).
//
// Concepts defined here: [Admit], [Local].
//
// It does not route requests to leaders (srv/client does) and holds no connections (srv/node does).
package rpc
