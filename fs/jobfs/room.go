package jobfs

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// Jobs is what the room needs of jobs.
type Jobs interface {
	Submit(ctx context.Context, spec []byte) (name string, err error)
	Plan(ctx context.Context, spec []byte) (client.JobPlan, error)
	Control(ctx context.Context, name, verb string, count int) error
	Forget(ctx context.Context, name string) error
	Job(ctx context.Context, name string) (client.JobInfo, error)
	List(ctx context.Context, after string, limit int) ([]client.JobInfo, error)
}

// Progress is what it needs to follow a job.
type Progress interface {
	Task(ctx context.Context, name string, index int) (client.JobTask, error)
	Await(ctx context.Context, name string, seen uint64) (client.JobInfo, error)
	Events(ctx context.Context, name string, after uint64) ([]client.JobEvent, error)
	Output(ctx context.Context, t client.JobTask, index int, stream string, offset int64, limit int) (data []byte, size int64, err error)
}

// Store is all of /dc/jobs; *client.Jobs is one.
type Store interface {
	Jobs
	Progress
}

var _ Store = (*client.Jobs)(nil)

const base = "jobs"

// New gives the room's root directory.
func New(s Store) synth.Dir {
	r := &room{store: s, refused: newRefusals()}
	r.files = []synth.Named{
		{Name: "new", Node: synth.Clone(base+"/new", r.submission())},
		{Name: "plan", Node: synth.Clone(base+"/plan", r.planning())},
		{Name: "rejected", Node: synth.Value(base+"/rejected", synth.ValueSpec{Read: r.refused.read})},
	}
	return r
}

type room struct {
	store   Store
	refused *refusals
	files   []synth.Named // by name
}

func (r *room) Key() string { return base }

func (r *room) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o1777}, nil
}

func (r *room) Lookup(ctx context.Context, name string) (synth.Node, error) {
	for _, f := range r.files {
		if f.Name == name {
			return f.Node, nil
		}
	}
	if strings.HasPrefix(name, ".") { // no job is called that: do not ask the leader
		return nil, dc.Errorf(dc.NotFound, "lookup", base+"/"+name, "")
	}
	j, err := r.store.Job(ctx, name)
	if err != nil {
		return nil, err
	}
	return r.job(j), nil
}

func (r *room) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	jobs, err := r.store.List(ctx, after, min(limit, dc.MaxScanPage))
	if err != nil {
		return nil, err
	}
	var list []synth.DirEntry
	for _, j := range jobs {
		list = append(list, synth.DirEntry{Name: j.Name, IsDir: true, Key: base + "/" + j.Name})
	}
	whole := len(jobs) < min(limit, dc.MaxScanPage)
	for _, f := range r.files {
		// A file that sorts after a full page of jobs comes with a later page.
		if f.Name > after && (whole || f.Name < list[len(list)-1].Name) {
			list = append(list, synth.DirEntry{Name: f.Name, Key: f.Node.Key()})
		}
	}
	slices.SortFunc(list, func(a, b synth.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return list[:min(len(list), limit)], nil
}

// Rmdir forgets an ended job.
func (r *room) Rmdir(ctx context.Context, name string) error { return r.store.Forget(ctx, name) }

const newUsage = `# Write a job and read back its name: exec 3<>new; cat job.sh >&3; cat <&3     or: cp job.sh new
# A job is a script with directives (#dc name=words array=0-9 cpu=0.5 memory=64M time=10m retries=2) or YAML.
`

func (r *room) submission() synth.CloneSpec {
	return synth.CloneSpec{
		Usage: newUsage,
		Max:   dc.MaxSpecBytes,
		Validate: func(ctx context.Context, spec []byte) error {
			_, err := r.store.Plan(ctx, spec)
			return r.refused.note(ctx, spec, err)
		},
		Commit: func(ctx context.Context, spec []byte) (synth.Source, error) {
			name, err := r.store.Submit(ctx, spec)
			if err != nil {
				return nil, r.refused.note(ctx, spec, err)
			}
			return synth.Bytes([]byte(name + "\n")), nil
		},
	}
}

func (r *room) planning() synth.CloneSpec {
	return synth.CloneSpec{
		Usage: "# Write a job and read back where it would run now, without running it.\n",
		Max:   dc.MaxSpecBytes,
		Commit: func(ctx context.Context, spec []byte) (synth.Source, error) {
			plan, err := r.store.Plan(ctx, spec)
			if err != nil {
				return nil, err
			}
			var b bytes.Buffer
			for task, node := range plan.Places {
				fmt.Fprintf(&b, "task %d on %s\n", task, node)
			}
			if plan.Unplaced > 0 {
				fmt.Fprintf(&b, "%d tasks unplaced: %s\n", plan.Unplaced, plan.Why)
			}
			return synth.Bytes(b.Bytes()), nil
		},
	}
}
