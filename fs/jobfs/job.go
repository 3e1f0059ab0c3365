package jobfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// retryPause is between two looks at a job whose leader does not answer.
const retryPause = 200 * time.Millisecond

// jobDir is the directory of one job.
type jobDir struct {
	synth.Dir
	info client.JobInfo
}

// Attr shows the owner and when the job was submitted.
func (d *jobDir) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o755, UID: d.info.UID, GID: d.info.GID, ModTime: d.info.Submitted}, nil
}

func (r *room) job(info client.JobInfo) synth.Dir {
	name, k := info.Name, base+"/"+info.Name
	owned := synth.Attr{Mode: 0o644, UID: info.UID, GID: info.GID}
	children := []synth.Named{
		{Name: "ctl", Node: synth.Ctl(k+"/ctl", synth.CtlSpec{Attr: owned, Commands: r.verbs(name)})},
		{Name: "events", Node: synth.Stream(k+"/events", synth.StreamSpec{Open: func(ctx context.Context, _ uint32) (synth.Source, error) { return r.events(ctx, name), nil }})},
		{Name: "log", Node: synth.Value(k+"/log", synth.ValueSpec{Read: func(ctx context.Context) ([]byte, error) { return r.log(ctx, name) }})},
		{Name: "spec", Node: synth.Value(k+"/spec", synth.ValueSpec{
			Attr: owned, Max: dc.MaxSpecBytes,
			Read: func(ctx context.Context) ([]byte, error) {
				j, err := r.store.Job(ctx, name)
				return j.Spec, err
			},
			Write: func(ctx context.Context, spec []byte) error { return r.update(ctx, name, spec) },
		})},
		{Name: "tasks", Node: &tasks{room: r, job: name}},
		{Name: "wait", Node: synth.Stream(k+"/wait", synth.StreamSpec{Open: func(context.Context, uint32) (synth.Source, error) {
			return synth.Once(func(ctx context.Context) ([]byte, error) { return r.wait(ctx, name) }), nil
		}})},
		{Name: "why", Node: synth.Value(k+"/why", synth.ValueSpec{Read: func(ctx context.Context) ([]byte, error) {
			j, err := r.store.Job(ctx, name)
			if err != nil || j.Why == "" || j.Pending == 0 {
				return nil, err
			}
			return fmt.Appendf(nil, "%d tasks wait: %s\n", j.Pending, j.Why), nil
		}})},
	}
	return &jobDir{synth.Static(k, append(children, synth.StatusFiles("status", k+"/status", func(ctx context.Context) ([]synth.Pair, error) {
		j, err := r.store.Job(ctx, name)
		if err != nil {
			return nil, err
		}
		return status(j), nil
	})...)...), info}
}

func status(j client.JobInfo) []synth.Pair {
	return []synth.Pair{
		{Key: "phase", Value: j.Phase},
		{Key: "type", Value: j.Type},
		{Key: "desired", Value: j.Desired},
		{Key: "running", Value: j.Placed},
		{Key: "pending", Value: j.Pending},
		{Key: "succeeded", Value: j.Succeeded},
		{Key: "failed", Value: j.Failed},
		{Key: "stopped", Value: j.Stopped},
		{Key: "version", Value: j.Version},
		{Key: "submitted", Value: j.Submitted},
		{Key: "ended", Value: j.Ended},
		{Key: "owner", Value: j.UID},
	}
}

func (r *room) verbs(name string) []synth.Command {
	plain := func(verb string) synth.Command {
		return synth.Command{Name: verb, Do: func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				return dc.Errorf(dc.Invalid, "job.control", name, "%s takes no words", verb)
			}
			return r.store.Control(ctx, name, verb, 0)
		}}
	}
	return []synth.Command{
		plain("start"), plain("stop"), plain("kill"), plain("restart"),
		{Name: "scale", Usage: "N", Do: func(ctx context.Context, args []string) error {
			if len(args) != 1 {
				return dc.Errorf(dc.Invalid, "job.control", name, "scale needs a number of tasks")
			}
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 {
				return dc.Errorf(dc.Invalid, "job.control", name, "scale %s: not a number of tasks", args[0])
			}
			return r.store.Control(ctx, name, "scale", n)
		}},
	}
}

// update submits another spec for a job. It must not name another job.
func (r *room) update(ctx context.Context, name string, spec []byte) error {
	got, err := r.store.Submit(ctx, spec)
	if err != nil {
		return r.refused.note(ctx, spec, err)
	}
	if got != name {
		return dc.Errorf(dc.Invalid, "job.update", name, "the spec names the job %s, which has been submitted; to update %s, name it", got, name)
	}
	return nil
}

// patiently calls fn again while the jobs group has no leader: a stream outlives an election.
func patiently[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	for {
		v, err := fn()
		if err == nil || dc.KindOf(err) != dc.Unavailable {
			return v, err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// maxFailures are listed by wait.
const maxFailures = 100

// wait blocks until the job has ended, and tells how: the phase, then a line for each failed task.
func (r *room) wait(ctx context.Context, name string) ([]byte, error) {
	var j client.JobInfo
	for seen := ^uint64(0); ; seen = j.Events {
		var err error
		j, err = patiently(ctx, func() (client.JobInfo, error) { return r.store.Await(ctx, name, seen) })
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if j.Over() {
			break
		}
	}
	b := []byte(j.Phase + "\n")
	left := int(min(j.Failed, maxFailures))
	for i := 0; i < int(j.Desired) && left > 0; i++ {
		t, err := patiently(ctx, func() (client.JobTask, error) { return r.store.Task(ctx, name, i) })
		if err != nil {
			return nil, err
		}
		if t.State == "failed" {
			left--
			b = fmt.Appendf(b, "task %d exit %d", i, t.Exit)
			if t.Reason != "" {
				b = append(b, ": "+t.Reason...)
			}
			b = append(b, '\n')
		}
	}
	return b, nil
}

// events follows a job: from its first event on, until it has ended.
func (r *room) events(ctx context.Context, name string) synth.Source {
	return synth.Pipe(ctx, func(ctx context.Context, emit func([]byte) error) error {
		last := uint64(0)
		for {
			j, err := patiently(ctx, func() (client.JobInfo, error) { return r.store.Await(ctx, name, last) })
			if err != nil {
				return err
			}
			for {
				events, err := patiently(ctx, func() ([]client.JobEvent, error) { return r.store.Events(ctx, name, last) })
				if err != nil {
					return err
				}
				for _, e := range events {
					last = e.Number
					if err := emit(eventLine(e)); err != nil {
						return err
					}
				}
				if len(events) == 0 {
					break
				}
			}
			if j.Over() && last >= j.Events {
				return nil
			}
		}
	})
}

func eventLine(e client.JobEvent) []byte {
	b := fmt.Appendf(nil, "%s %s", e.At.UTC().Format(time.RFC3339), e.What)
	if e.Task >= 0 {
		b = fmt.Appendf(b, " task %d", e.Task)
	}
	if e.Node != "" {
		b = fmt.Appendf(b, " node %s", e.Node)
	}
	if e.Detail != "" {
		b = fmt.Appendf(b, " (%s)", e.Detail)
	}
	return append(b, '\n')
}

// maxLog bounds what the log of a job shows; the rest is in the tasks' own files.
const maxLog = 8 * dc.MiB

// log gives all tasks' output, task by task, each line behind its task's number.
func (r *room) log(ctx context.Context, name string) ([]byte, error) {
	j, err := r.store.Job(ctx, name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for i := range int(j.Desired) {
		t, err := r.store.Task(ctx, name, i)
		if err != nil {
			return nil, err
		}
		for _, stream := range []string{"stdout", "stderr"} {
			if err := r.logStream(ctx, &b, t, i, stream); err != nil {
				fmt.Fprintf(&b, "%d| [%s cannot be read: %v]\n", i, stream, err)
			}
			if b.Len() >= maxLog {
				fmt.Fprintf(&b, "[%d MiB shown; the rest is in tasks/*/stdout and stderr]\n", maxLog/dc.MiB)
				return b.Bytes(), nil
			}
		}
	}
	return b.Bytes(), nil
}

func (r *room) logStream(ctx context.Context, b *bytes.Buffer, t client.JobTask, index int, stream string) error {
	var text []byte
	for len(text) < maxLog {
		data, _, err := r.output(ctx, t, index, stream, int64(len(text)), chunk)
		if err != nil {
			return err
		}
		if len(data) == 0 {
			break
		}
		text = append(text, data...)
	}
	for line := range bytes.Lines(text) {
		fmt.Fprintf(b, "%d| %s", index, line)
		if !bytes.HasSuffix(line, []byte{'\n'}) {
			b.WriteByte('\n')
		}
	}
	return nil
}

// chunk is how much output is asked for at once.
const chunk = 256 * dc.KiB

// output reads a task's output; a task that never wrote any has none.
func (r *room) output(ctx context.Context, t client.JobTask, index int, stream string, off int64, limit int) ([]byte, int64, error) {
	data, size, err := r.store.Output(ctx, t, index, stream, off, limit)
	if err != nil && errors.Is(err, dc.NotFound) {
		return nil, 0, nil
	}
	return data, size, err
}
