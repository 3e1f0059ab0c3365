package client

import (
	"context"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

// A LockView reads the files of /dc/lock otherwise than as they are now.
type LockView struct {
	l     *Lock
	at    dc.Revision
	stale bool
}

// At gives the files as they were at a revision that is still kept; reading them is dc.Stale if it is not, dc.Invalid if it is to come.
func (l *Lock) At(rev dc.Revision) LockView { return LockView{l: l, at: rev} }

// StaleView gives the files as the nearest node with a copy has them: this node, if it is one. They are as they were at some moment, later looks may
// even show an earlier one, and nobody is waited for, so that it works without a majority.
func (l *Lock) StaleView() LockView { return LockView{l: l, stale: true} }

// Stat tells of a file without its value.
func (v LockView) Stat(ctx context.Context, path string) (LockFile, error) {
	return v.read(ctx, path, false)
}

// Read gives a file with its value.
func (v LockView) Read(ctx context.Context, path string) (LockFile, error) {
	return v.read(ctx, path, true)
}

func (v LockView) read(ctx context.Context, path string, value bool) (LockFile, error) {
	var out *dcpb.LockStatReply
	err := v.call(ctx, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (err error) {
		out, err = c.Stat(ctx, &dcpb.LockStatRequest{Header: h, Path: path, Value: value, At: uint64(v.at), Stale: v.stale})
		return err
	})
	return lockFile(out.GetFile()), err
}

// List gives up to limit children of a directory, in name order after the name `after`; fewer mean the end.
func (v LockView) List(ctx context.Context, path, after string, limit int) ([]LockFile, error) {
	var out *dcpb.LockListReply
	err := v.call(ctx, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (err error) {
		out, err = c.List(ctx, &dcpb.LockListRequest{
			Header: h, Path: path, After: after, Limit: uint32(max(0, min(limit, dc.MaxScanPage))), At: uint64(v.at), Stale: v.stale,
		})
		return err
	})
	files := make([]LockFile, 0, len(out.GetFiles()))
	for _, f := range out.GetFiles() {
		files = append(files, lockFile(f))
	}
	return files, err
}

func (v LockView) call(ctx context.Context, call func(context.Context, dcpb.LockClient, *dcpb.Header) error) error {
	g, err := v.l.c.Group(LockGroup)
	if err != nil {
		return err
	}
	run := v.l.c.Query
	if v.stale {
		run = v.l.c.Nearest
	}
	return run(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		return rpc.FromStatus(call(ctx, dcpb.NewLockClient(cc), h))
	})
}
