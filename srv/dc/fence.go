package dc

import (
	"context"
	"net/url"
	"strconv"
	"strings"
)

// A Fence is what a write is conditioned on: that nobody has taken the lock named Lock since the acquisition whose fencing token is Token. The zero Fence
// is no condition.
type Fence struct {
	Lock  string // path below /dc/lock
	Token uint64
}

// IsZero says that there is no condition.
func (f Fence) IsZero() bool { return f == Fence{} }

// String is ParseFence's inverse: TOKEN@LOCK, as in 17@election/leader.
func (f Fence) String() string { return strconv.FormatUint(f.Token, 10) + "@" + f.Lock }

// ParseFence reads TOKEN@LOCK. The lock may be given as a path below /dc/lock or, for use in a name, with its slashes as %2F.
func ParseFence(s string) (Fence, error) {
	s = strings.TrimSuffix(s, "\n")
	number, lock, _ := strings.Cut(s, "@")
	token, err := strconv.ParseUint(number, 10, 64)
	if unescaped, bad := url.PathUnescape(lock); bad == nil && !strings.Contains(lock, "/") {
		lock = unescaped
	}
	lock = strings.Trim(lock, "/")
	switch {
	case err != nil || token == 0 || lock == "":
		return Fence{}, Errorf(Invalid, "fence", s, "want TOKEN@LOCK, such as 17@election/leader; getfattr -n user.dc.fence /dc/lock/election/leader tells the token")
	case len(lock) > MaxFenceLockBytes:
		return Fence{}, Errorf(Invalid, "fence", s, "the lock's path has %d bytes, over the limit of %d (MaxFenceLockBytes)", len(lock), MaxFenceLockBytes)
	}
	return Fence{Lock: lock, Token: token}, nil
}

type fenceKey struct{}

// WithFence has every change made with ctx conditioned on f.
func WithFence(ctx context.Context, f Fence) context.Context {
	return context.WithValue(ctx, fenceKey{}, f)
}

// FenceOf reads it back; the zero Fence without one.
func FenceOf(ctx context.Context) Fence {
	f, _ := ctx.Value(fenceKey{}).(Fence)
	return f
}
