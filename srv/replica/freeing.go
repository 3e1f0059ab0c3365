package replica

import "context"

type freeingKey struct{}

// Freeing marks a proposal whose command makes room or keeps order (a deletion, a sweep, the end of a session): it is still accepted when the disk has
// reached its reserve and other commands are refused with dc.NoSpace.
func Freeing(ctx context.Context) context.Context { return context.WithValue(ctx, freeingKey{}, true) }

// IsFreeing tells whether ctx was marked by [Freeing].
func IsFreeing(ctx context.Context) bool {
	marked, _ := ctx.Value(freeingKey{}).(bool)
	return marked
}
