package dc

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Kind says what sort of failure an [Error] is. Kinds are append-only: their numbers are on the wire and in
// replicated results. They become a gRPC status in srv/rpc and an errno in fs/synth, nowhere else.
type Kind uint8

// The kinds, with the errno that fs/synth gives them.
const (
	Internal     Kind = iota // a broken invariant or an unclassified failure: EIO
	Invalid                  // the request makes no sense: EINVAL
	NotFound                 // ENOENT
	Exists                   // EEXIST
	NotEmpty                 // ENOTEMPTY
	NotDir                   // ENOTDIR
	IsDir                    // EISDIR
	Denied                   // EACCES
	NotOwner                 // EPERM
	TooLarge                 // over a named limit: EFBIG
	NameTooLong              // ENAMETOOLONG
	NoSpace                  // ENOSPC
	Busy                     // EBUSY
	Stale                    // a handle, lease or epoch that has ended: ESTALE
	Again                    // nothing there yet, or a lock is held: EAGAIN
	Interrupted              // the caller gave up: EINTR
	Unavailable              // no quorum or no answer in time, outcome unknown: EIO
	NotLeader                // ask [Error.Leader] instead; never reaches a user: EIO
	Unsupported              // EOPNOTSUPP
	Corrupt                  // a checksum does not match: EIO
	NoAttr                   // no such extended attribute: ENODATA
	Conflict                 // a compare-and-set condition did not hold: EBUSY
	TooManyLinks             // EMLINK
	Range                    // a buffer is too small: ERANGE
	NoDevice                 // ENXIO
	BadHandle                // EBADF
	CrossDevice              // EXDEV
	Deadlock                 // waiting for a lock would never end: EDEADLK
)

var kindNames = [...]string{
	"internal error", "invalid", "not found", "exists", "not empty", "not a directory", "is a directory", "permission denied",
	"operation not permitted", "too large", "name too long", "no space", "busy", "stale", "try again", "interrupted", "unavailable",
	"not leader", "unsupported", "corrupt", "no such attribute", "conflict", "too many links", "result out of range", "no such device", "bad handle", "across devices", "deadlock",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is the one error type of the project. Op names what was attempted, Path on what, Err says why and what to do.
type Error struct {
	Op     string
	Path   string
	Kind   Kind
	Err    error
	Leader NodeID // with NotLeader: who leads, if known
}

// Errorf builds an Error; the format gives the reason. An empty format leaves the kind to speak for itself.
func Errorf(kind Kind, op, path, format string, args ...any) *Error {
	e := &Error{Op: op, Path: path, Kind: kind}
	if format != "" {
		e.Err = fmt.Errorf(format, args...)
	}
	return e
}

// Error gives one line: "kv.put users/ada: value 9 MiB exceeds the 1 MiB limit".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Path != "" {
		if e.Op != "" {
			b.WriteByte(' ')
		}
		b.WriteString(e.Path)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		b.WriteString(e.Kind.String())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, dc.NotFound) work: a [Kind] is an error value that matches by kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// Error lets a bare Kind stand as an error, for errors.Is and for causes that need no more words.
func (k Kind) Error() string { return k.String() }

// KindOf finds the kind of err: the outermost *Error's, or of a bare Kind; cancelled contexts are Interrupted,
// expired ones Unavailable, anything else Internal. err must not be nil.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	switch {
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable
	}
	return Internal
}

// Wrap adds an operation and path to err and keeps its kind; nil stays nil.
func Wrap(err error, op, path string) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Path: path, Kind: KindOf(err), Err: err}
}
