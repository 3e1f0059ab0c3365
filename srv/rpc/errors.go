package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// codeOf gives each kind the gRPC code that generic tools understand; the exact kind travels in the detail.
var codeOf = map[dc.Kind]codes.Code{
	dc.Internal: codes.Internal, dc.Invalid: codes.InvalidArgument, dc.NotFound: codes.NotFound, dc.Exists: codes.AlreadyExists,
	dc.Denied: codes.PermissionDenied, dc.NotOwner: codes.PermissionDenied, dc.NoSpace: codes.ResourceExhausted,
	dc.TooLarge: codes.InvalidArgument, dc.NameTooLong: codes.InvalidArgument, dc.Unavailable: codes.Unavailable,
	dc.NotLeader: codes.FailedPrecondition, dc.Interrupted: codes.Canceled, dc.Unsupported: codes.Unimplemented, dc.Corrupt: codes.DataLoss,
	dc.Conflict: codes.Aborted,
}

// ToStatus turns any error into a gRPC status error that [FromStatus] turns back into an equal *dc.Error. Nil stays nil.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	kind := dc.KindOf(err)
	detail := &dcpb.ErrorDetail{Kind: uint32(kind), Text: err.Error()}
	if e, ok := errors.AsType[*dc.Error](err); ok {
		detail.Op, detail.Path, detail.Leader = e.Op, e.Path, uint64(e.Leader)
		detail.Text = ""
		if e.Err != nil {
			detail.Text = e.Err.Error()
		}
	}
	code, ok := codeOf[kind]
	if !ok {
		code = codes.FailedPrecondition
	}
	st, detailErr := status.New(code, err.Error()).WithDetails(detail)
	if detailErr != nil {
		return status.Error(code, err.Error())
	}
	return st.Err()
}

// FromStatus turns what a gRPC call returned into a *dc.Error; an error that did not come from a service (connection refused,
// deadline, cancelled) becomes Unavailable or Interrupted. Nil stays nil.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*dc.Error](err); ok {
		return e // in process: never was a status
	}
	st, ok := status.FromError(err)
	if !ok {
		return &dc.Error{Kind: dc.KindOf(err), Err: err}
	}
	for _, d := range st.Details() {
		if d, ok := d.(*dcpb.ErrorDetail); ok {
			e := &dc.Error{Op: d.Op, Path: d.Path, Kind: dc.Kind(d.Kind), Leader: dc.NodeID(d.Leader)}
			if d.Text != "" {
				e.Err = errors.New(d.Text)
			}
			return e
		}
	}
	return &dc.Error{Kind: kindOfCode(st.Code()), Err: errors.New(st.Message())}
}

// kindOfCode classifies a status that gRPC itself made.
func kindOfCode(c codes.Code) dc.Kind {
	switch c {
	case codes.Canceled:
		return dc.Interrupted
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
		return dc.Unavailable
	case codes.ResourceExhausted:
		return dc.TooLarge // a message over the transport's limit
	case codes.Unimplemented:
		return dc.Unsupported
	case codes.Unauthenticated, codes.PermissionDenied:
		return dc.Denied
	case codes.InvalidArgument:
		return dc.Invalid
	}
	return dc.Internal
}

// contextError gives the error of an ended ctx as a *dc.Error.
func contextError(ctx context.Context, op string) error {
	return &dc.Error{Op: op, Kind: dc.KindOf(ctx.Err()), Err: ctx.Err()}
}
