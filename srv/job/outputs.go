package job

import (
	"context"

	"google.golang.org/grpc"

	"missingos/scheduler/agent"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// Kept is where a node keeps what its tasks write; *driver.Driver is one.
type Kept interface {
	// Size and ReadAt are of one output of an attempt, which is named by agent.ID; dc.NotFound if nothing of it is here.
	Size(id, stream string) (int64, error)
	ReadAt(id, stream string, p []byte, off int64) (int, error)
}

// maxOutputRead bounds one answer.
const maxOutputRead = 1 * dc.MiB

// Outputs serves what the tasks of this node have written. Every node has one, whether it leads or not.
type Outputs struct {
	dcpb.UnimplementedTaskOutputServer
	kept Kept
}

var _ dcpb.TaskOutputServer = (*Outputs)(nil)

// NewOutputs makes the service.
func NewOutputs(k Kept) *Outputs { return &Outputs{kept: k} }

// Register adds it to a server.
func (o *Outputs) Register(r grpc.ServiceRegistrar) { dcpb.RegisterTaskOutputServer(r, o) }

// Read reads an output from an offset; a limit of 0 asks for its size only.
func (o *Outputs) Read(_ context.Context, r *dcpb.TaskReadRequest) (*dcpb.TaskReadReply, error) {
	const op = "job.output"
	id := agent.ID{Job: r.Job, Task: r.Task, Attempt: r.Attempt}.String()
	if r.Header.GetPrincipal().GetNode() == 0 {
		return nil, dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	if r.Limit < 0 || r.Offset < 0 {
		return nil, dc.Errorf(dc.Invalid, op, id, "limit %d, offset %d", r.Limit, r.Offset)
	}
	size, err := o.kept.Size(id, r.Stream)
	if err != nil {
		return nil, err
	}
	out := &dcpb.TaskReadReply{Size: size}
	if want := min(int64(r.Limit), maxOutputRead, size-r.Offset); want > 0 {
		out.Data = make([]byte, want)
		n, err := o.kept.ReadAt(id, r.Stream, out.Data, r.Offset)
		if err != nil {
			return nil, err
		}
		out.Data = out.Data[:n]
	}
	return out, nil
}
