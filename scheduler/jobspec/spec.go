package jobspec

import (
	"regexp"
	"time"

	"missingos/srv/dc"
)

// Job types.
const (
	Batch   = "batch"   // runs to its end
	Service = "service" // is started again whenever it ends
)

// Limits of a spec.
const (
	MaxTasks      = 10_000
	MaxRetries    = 1000
	MaxNameLength = 63
	MaxEnv        = 256
	MaxTime       = 365 * 24 * time.Hour
	MaxCPUMilli   = 1024 * 1000
	MaxMemory     = 1 << 50
)

// Defaults of what a spec leaves out.
const (
	DefaultCPUMilli = 100
	DefaultMemory   = 64 * dc.MiB
)

// A Spec is what a job asks for. Parse fills in defaults; Script and Command exclude each other.
type Spec struct {
	Name        string            // "" lets the service make one up
	Type        string            // Batch or Service
	Count       int               // tasks, numbered from 0
	Command     []string          // program and arguments
	Script      string            // or the whole text of a script that begins with #!
	CPUMilli    int               // thousandths of a core, a task
	MemoryBytes int64             // a task
	Time        time.Duration     // a task that runs longer fails; 0 is no limit
	Retries     int               // attempts after the first that fail by themselves (a lost node does not count)
	Env         map[string]string // added to the task's environment
	Constraints []Constraint      // all must hold for a node
	Priority    int               // 0 to 100; higher is placed first
}

// Operators of a constraint.
const (
	Equal    = "=="
	NotEqual = "!="
)

// A Constraint compares a label of a node ("node" and "arch" are labels that every node has) with a value.
type Constraint struct {
	Label, Op, Value string
}

// Matches tells whether labels satisfy c; a missing label is the empty string.
func (c Constraint) Matches(labels map[string]string) bool {
	return (labels[c.Label] == c.Value) == (c.Op == Equal)
}

func (c Constraint) String() string { return c.Label + " " + c.Op + " " + c.Value }

var (
	nameForm  = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)
	labelForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]*$`)
	envForm   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// reserved are the names that stand beside jobs in /dc/jobs.
var reserved = map[string]bool{"new": true, "plan": true, "rejected": true, "events": true}
