package dc

import "context"

// A Principal is who a request speaks for. The mount fills it from the kernel's caller, the services check it.
// A node may speak only for principals on that node: srv/rpc compares Node with the peer's certificate.
type Principal struct {
	UID, GID uint32
	Groups   []uint32
	Node     NodeID // the node the caller runs on
	PID      uint32
	Command  string // the caller's command name, for showing only
	Job      string // the job the caller is a task of, if any
}

// System is the principal of the daemon's own controllers.
func System(node NodeID) Principal { return Principal{Node: node, Command: "dcd"} }

type principalKey struct{}

// WithPrincipal gives ctx a principal.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalOf reads it back; without one it is the zero Principal, which is root on no node and is refused by services.
func PrincipalOf(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}
