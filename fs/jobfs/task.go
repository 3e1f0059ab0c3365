package jobfs

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// tasks is the directory of a job's tasks, by number.
type tasks struct {
	room *room
	job  string
}

func (d *tasks) Key() string { return base + "/" + d.job + "/tasks" }

func (d *tasks) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o755}, nil
}

func (d *tasks) Lookup(ctx context.Context, name string) (synth.Node, error) {
	i, err := strconv.Atoi(name)
	if err != nil || strconv.Itoa(i) != name {
		return nil, dc.Errorf(dc.NotFound, "job.task", d.job+"/"+name, "tasks are numbered from 0")
	}
	if _, err := d.room.store.Task(ctx, d.job, i); err != nil {
		return nil, err
	}
	return d.room.task(d.job, i), nil
}

func (d *tasks) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	j, err := d.room.store.Job(ctx, d.job)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range int(j.Desired) {
		if n := strconv.Itoa(i); n > after {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	var list []synth.DirEntry
	for _, n := range names[:min(len(names), limit)] {
		list = append(list, synth.DirEntry{Name: n, IsDir: true, Key: d.Key() + "/" + n})
	}
	return list, nil
}

// task is the directory of one task.
func (r *room) task(job string, index int) synth.Dir {
	k := fmt.Sprintf("%s/%s/tasks/%d", base, job, index)
	line := func(name string, text func(client.JobTask) string) synth.Named {
		return synth.Named{Name: name, Node: synth.Value(k+"/"+name, synth.ValueSpec{Read: func(ctx context.Context) ([]byte, error) {
			t, err := r.store.Task(ctx, job, index)
			if err != nil {
				return nil, err
			}
			if s := text(t); s != "" {
				return []byte(s + "\n"), nil
			}
			return nil, nil
		}})}
	}
	children := []synth.Named{
		line("exit", func(t client.JobTask) string {
			if t.Finished.IsZero() {
				return ""
			}
			return strconv.Itoa(int(t.Exit))
		}),
		line("node", func(t client.JobTask) string { return t.NodeName }),
		line("pid", func(t client.JobTask) string {
			if t.PID == 0 {
				return ""
			}
			return strconv.Itoa(int(t.PID))
		}),
		{Name: "stderr", Node: &output{room: r, job: job, index: index, stream: "stderr"}},
		{Name: "stdout", Node: &output{room: r, job: job, index: index, stream: "stdout"}},
		{Name: "wait", Node: synth.Stream(k+"/wait", synth.StreamSpec{Open: func(context.Context, uint32) (synth.Source, error) {
			return synth.Once(func(ctx context.Context) ([]byte, error) { return r.waitTask(ctx, job, index) }), nil
		}})},
	}
	return synth.Static(k, append(children, synth.StatusFiles("status", k+"/status", func(ctx context.Context) ([]synth.Pair, error) {
		t, err := r.store.Task(ctx, job, index)
		if err != nil {
			return nil, err
		}
		return taskStatus(t), nil
	})...)...)
}

func taskStatus(t client.JobTask) []synth.Pair {
	var exit any // unknown until it has ended
	if !t.Finished.IsZero() {
		exit = t.Exit
	}
	return []synth.Pair{
		{Key: "state", Value: t.State},
		{Key: "node", Value: t.NodeName},
		{Key: "pid", Value: t.PID},
		{Key: "attempt", Value: t.Attempt},
		{Key: "fence", Value: t.Fence},
		{Key: "failures", Value: t.Failures},
		{Key: "exit", Value: exit},
		{Key: "reason", Value: t.Reason},
		{Key: "placed", Value: t.Placed},
		{Key: "started", Value: t.Started},
		{Key: "ended", Value: t.Finished},
	}
}

// waitTask blocks until a task has succeeded, failed or been stopped.
func (r *room) waitTask(ctx context.Context, job string, index int) ([]byte, error) {
	for seen := ^uint64(0); ; {
		j, err := patiently(ctx, func() (client.JobInfo, error) { return r.store.Await(ctx, job, seen) })
		if err != nil {
			return nil, err
		}
		t, err := patiently(ctx, func() (client.JobTask, error) { return r.store.Task(ctx, job, index) })
		if err != nil {
			return nil, err
		}
		switch t.State {
		case "succeeded", "failed", "stopped":
			return fmt.Appendf(nil, "%s exit %d\n", t.State, t.Exit), nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		seen = j.Events
	}
}

// output is a task's stdout or stderr, read from the node that runs its latest attempt.
type output struct {
	room   *room
	job    string
	index  int
	stream string
}

func (o *output) Key() string {
	return fmt.Sprintf("%s/%s/tasks/%d/%s", base, o.job, o.index, o.stream)
}

func (o *output) Attr(ctx context.Context) (synth.Attr, error) {
	t, err := o.room.store.Task(ctx, o.job, o.index)
	if err != nil {
		return synth.Attr{}, err
	}
	_, size, err := o.room.output(ctx, t, o.index, o.stream, 0, 0)
	return synth.Attr{Mode: 0o444, Size: size, ModTime: t.Finished}, err
}

func (o *output) Open(ctx context.Context, _ uint32) (synth.Handle, error) {
	t, err := o.room.store.Task(ctx, o.job, o.index)
	if err != nil {
		return nil, err
	}
	return &outputHandle{output: o, task: t}, nil
}

// An outputHandle reads one attempt's output, as it was at open(2).
type outputHandle struct {
	*output
	task client.JobTask
}

var _ synth.Reader = (*outputHandle)(nil)

func (h *outputHandle) Read(ctx context.Context, dst []byte, off int64) (int, error) {
	n := 0
	for n < len(dst) {
		data, _, err := h.room.output(ctx, h.task, h.index, h.stream, off+int64(n), min(len(dst)-n, chunk))
		if err != nil {
			return n, err
		}
		if len(data) == 0 {
			break
		}
		n += copy(dst[n:], data)
	}
	return n, nil
}

// Release has nothing to do.
func (h *outputHandle) Release() {}
