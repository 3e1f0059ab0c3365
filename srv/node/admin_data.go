package node

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// DataStatus tells how the blocks of files are.
func (a *adminServer) DataStatus(ctx context.Context, _ *dcpb.AdminDataStatusRequest) (*dcpb.DataCareReply, error) {
	return a.n.files.Care(dc.WithPrincipal(ctx, dc.System(a.n.id.Node)))
}
