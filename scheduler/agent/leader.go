package agent

import (
	"context"
	"fmt"
	"time"
)

// An Offer is what a node has for tasks.
type Offer struct {
	Name        string
	CPUMilli    int
	MemoryBytes int64
	Labels      map[string]string
}

// An ID names an attempt of a task of a run of a job.
type ID struct {
	Job           uint64
	Task, Attempt uint32
}

// String gives the name of the attempt's directory.
func (id ID) String() string { return fmt.Sprintf("%d.%d.%d", id.Job, id.Task, id.Attempt) }

// An Allocation is an attempt that the leader has placed on this node.
type Allocation struct {
	ID
	Job      string
	Fence    uint64
	Spec     []byte // as jobspec.Parse reads it
	Want     string // "", or that it must end: stop or kill
	Outdated bool   // it must end because its job was restarted or updated
	UID, GID uint32
	Groups   []uint32
}

// Orders are all allocations of this node, or nothing if that is what was seen.
type Orders struct {
	Version     []byte
	Same        bool
	Allocations []Allocation
}

// An End says how an attempt ended. The numbers are command.JobEnd's.
type End uint32

const (
	None      End = iota // it has started
	Exited               // by itself, or killed for breaking a limit
	Stopped              // because its job was
	Moved                // because the node drains or shuts down
	Restarted            // because its job was restarted or updated
)

// An Outcome is what became of an attempt.
type Outcome struct {
	ID
	End    End
	Exit   int // exit status; 128 + signal if one ended it
	Reason string
	PID    int
}

// A Leader is the jobs service as an agent sees it.
type Leader interface {
	// Register opens a lease of the given length under a new epoch; what was allocated here before is lost.
	Register(ctx context.Context, o Offer) (epoch uint64, lease time.Duration, err error)
	// Sync renews the lease and gives the orders as soon as their version is not seen, at the latest after wait. dc.Stale: the lease has ended.
	Sync(ctx context.Context, epoch uint64, seen []byte, draining bool, wait time.Duration) (Orders, error)
	// Report tells what became of attempts. dc.Stale: the lease has ended.
	Report(ctx context.Context, epoch uint64, outcomes []Outcome) error
}
