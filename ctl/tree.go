package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// The commands of this file work through the mount, with the same files that people use.

func kvCommands() []*Command {
	type scanOpts struct {
		from, to, prefix, format string
		limit                    int
		keys, reverse            bool
	}
	return []*Command{
		listCommand("kv", "kv", "list the tables, or a table's rows", "[TABLE]", "ls /dc/kv/TABLE"),
		{
			Noun: "kv", Verb: "scan", Args: "TABLE", Short: "stream a table's rows in key order",
			Long:    "With plain tools: exec 3<>/dc/kv/TABLE/.dc/scan; echo 'prefix=a limit=10' >&3; cat <&3",
			Example: "dcctl kv scan users --prefix a --limit 10",
			Flags: func(fs *flag.FlagSet) any {
				o := &scanOpts{}
				fs.StringVar(&o.from, "from", "", "first `key`")
				fs.StringVar(&o.to, "to", "", "end before this `key`")
				fs.StringVar(&o.prefix, "prefix", "", "keys with this `prefix` only")
				fs.StringVar(&o.format, "format", "json", "json or tsv")
				fs.IntVar(&o.limit, "limit", 0, "at most so many `rows`")
				fs.BoolVar(&o.keys, "keys-only", false, "leave out the values")
				fs.BoolVar(&o.reverse, "reverse", false, "last key first")
				return o
			},
			Run: func(_ context.Context, env *Env, opts any, args []string) error {
				if len(args) != 1 {
					return usagef("kv scan needs one table")
				}
				o := opts.(*scanOpts)
				var q []string
				for name, v := range map[string]string{"from": o.from, "to": o.to, "prefix": o.prefix, "format": o.format} {
					if v != "" {
						q = append(q, name+"="+v)
					}
				}
				if o.limit > 0 {
					q = append(q, fmt.Sprintf("limit=%d", o.limit))
				}
				if o.keys {
					q = append(q, "keys-only")
				}
				if o.reverse {
					q = append(q, "reverse")
				}
				path, err := env.inTree(filepath.Join("kv", args[0], ".dc/scan"))
				if err != nil {
					return err
				}
				return call(env, path, strings.NewReader(strings.Join(q, " ")+"\n"))
			},
		},
		{
			Noun: "kv", Verb: "load", Args: "TABLE < ROWS", Short: "load rows in bulk: JSON lines or TSV",
			Long:    "Each line is {\"key\":..,\"value\":..} or KEY<TAB>VALUE. Prints the number of rows. With plain tools: cat rows > /dc/kv/TABLE/.dc/load",
			Example: "dcctl kv load users < users.jsonl",
			Run:     callInTable("kv load", "kv", ".dc/load"),
		},
		kvSplit(),
	}
}

// callInTable copies standard input into a clone file of the named table or topic and prints its answer.
func callInTable(name, tree, file string) func(context.Context, *Env, any, []string) error {
	return func(_ context.Context, env *Env, _ any, args []string) error {
		if len(args) != 1 {
			return usagef("%s needs one name", name)
		}
		path, err := env.inTree(filepath.Join(tree, args[0], file))
		if err != nil {
			return err
		}
		return call(env, path, env.Stdin)
	}
}

func topicCommands() []*Command {
	return []*Command{
		listCommand("topic", "topics", "list the topics", "", "ls /dc/topics"),
		{
			Noun: "topic", Verb: "publish", Args: "TOPIC [MESSAGE]", Short: "publish one message, or each line of standard input",
			Long:    "Returns when they are on disk on a majority. With plain tools: echo MESSAGE >> /dc/topics/TOPIC/log",
			Example: "dcctl topic publish orders 'order 1'\ndcctl topic publish orders < orders.txt",
			Run:     runPublish,
		},
		{
			Noun: "topic", Verb: "tail", Args: "TOPIC", Short: "print new messages as they arrive",
			Long: "With plain tools: cat /dc/topics/TOPIC/tail", Example: "dcctl topic tail orders",
			Run: copyFile("topic tail", "topics", "tail"),
		},
		{
			Noun: "topic", Verb: "take", Args: "TOPIC GROUP", Short: "take messages as a member of a consumer group, one a line, until interrupted",
			Long:    "Asking for the following line acknowledges the one before. With plain tools: while read -r m; do ...; done < /dc/topics/TOPIC/groups/GROUP/next",
			Example: "dcctl topic take orders billing",
			Run: func(_ context.Context, env *Env, _ any, args []string) error {
				if len(args) != 2 {
					return usagef("topic take needs a topic and a group")
				}
				return env.copyOut(filepath.Join("topics", args[0], "groups", args[1], "next"))
			},
		},
		{
			Noun: "topic", Verb: "groups", Args: "TOPIC", Short: "list a topic's consumer groups and how far behind they are",
			Long: "With plain tools: cd /dc/topics/TOPIC/groups; head */lag", Example: "dcctl topic groups orders",
			Run: runTopicGroups,
		},
	}
}

func runPublish(_ context.Context, env *Env, _ any, args []string) error {
	if len(args) != 1 && len(args) != 2 {
		return usagef("topic publish needs a topic and perhaps a message")
	}
	path, err := env.inTree(filepath.Join("topics", args[0], "log"))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	in := env.Stdin
	if len(args) == 2 {
		in = strings.NewReader(args[1] + "\n")
	}
	_, err = io.Copy(onlyWriter{f}, in)
	return err
}

func runTopicGroups(_ context.Context, env *Env, _ any, args []string) error {
	if len(args) != 1 {
		return usagef("topic groups needs one topic")
	}
	dir, err := env.inTree(filepath.Join("topics", args[0], "groups"))
	if err != nil {
		return err
	}
	groups, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(env.Stdout, 0, 8, 2, ' ', 0)
	for _, g := range groups {
		lag, err := os.ReadFile(filepath.Join(dir, g.Name(), "lag"))
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "%s\t%s\n", g.Name(), strings.TrimSpace(string(lag)))
	}
	return t.Flush()
}

func lockCommands() []*Command {
	type runOpts struct{ shared, try bool }
	return []*Command{
		{
			Noun: "lock", Verb: "ls", Short: "list who holds and who waits for which lock",
			Long: "With plain tools: cat /dc/lock/.dc/locks", Example: "dcctl lock ls",
			Run: func(_ context.Context, env *Env, _ any, args []string) error {
				if len(args) > 0 {
					return usagef("lock ls takes no arguments")
				}
				return env.copyOut("lock/.dc/locks")
			},
		},
		{
			Noun: "lock", Verb: "run", Args: "LOCK COMMAND [ARG ...]", Short: "run a command while holding a lock of the cluster",
			Long:    "Waits for the lock; the command finds its fencing token in DC_FENCE. With plain tools: flock /dc/lock/LOCK COMMAND",
			Example: "dcctl lock run leader ./only-one-of-me",
			Exits:   ", else the command's own; 3 the lock is held and --try was given",
			Flags: func(fs *flag.FlagSet) any {
				o := &runOpts{}
				fs.BoolVar(&o.shared, "shared", false, "hold it together with others who ask for it shared")
				fs.BoolVar(&o.try, "try", false, "do not wait")
				return o
			},
			Run: func(ctx context.Context, env *Env, opts any, args []string) error {
				o := opts.(*runOpts)
				if len(args) < 2 {
					return usagef("lock run needs a lock and a command")
				}
				return runLocked(ctx, env, args, o.shared, o.try)
			},
		},
		lockCas(),
	}
}

func runLocked(ctx context.Context, env *Env, args []string, shared, try bool) error {
	path, err := env.inTree(filepath.Join("lock", args[0]))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if try {
		how |= unix.LOCK_NB
	}
	if err := flock(ctx, f, how); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			fmt.Fprintf(env.Stderr, "dcctl: %s is held; see dcctl lock ls\n", args[0])
			return exitError(3)
		}
		return &os.PathError{Op: "flock", Path: path, Err: err}
	}
	fence := make([]byte, 32)
	n, err := unix.Fgetxattr(int(f.Fd()), "user.dc.fence", fence)
	if err != nil {
		return &os.PathError{Op: "getxattr user.dc.fence", Path: path, Err: err}
	}
	cmd := exec.CommandContext(ctx, args[1], args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = env.Stdin, env.Stdout, env.Stderr
	cmd.Env = append(os.Environ(), "DC_FENCE="+string(fence[:n]))
	err = cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitError(max(e.ExitCode(), ExitFailed))
	}
	return err
}

// flock waits for the lock or for ctx; the waiting thread is given up with the process then.
func flock(ctx context.Context, f *os.File, how int) error {
	got := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), how)
			if errors.Is(err, unix.EINTR) && ctx.Err() == nil {
				continue // the runtime's own signals
			}
			got <- err
			return
		}
	}()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func jobCommands() []*Command {
	type runOpts struct{ wait bool }
	return []*Command{
		{
			Noun: "job", Verb: "run", Args: "FILE", Short: "submit a job (a script with #dc lines, or YAML) and print its name",
			Long:    "FILE may be - for standard input. With plain tools: cp FILE /dc/jobs/new",
			Example: "dcctl job run count.sh\ndcctl job run --wait count.sh && dcctl job logs count",
			Exits:   ", 3 the job failed (with --wait)",
			Flags: func(fs *flag.FlagSet) any {
				o := &runOpts{}
				fs.BoolVar(&o.wait, "wait", false, "wait until it ends")
				return o
			},
			Run: func(_ context.Context, env *Env, opts any, args []string) error {
				if len(args) != 1 {
					return usagef("job run needs one file")
				}
				return runJob(env, args[0], opts.(*runOpts).wait)
			},
		},
		{
			Noun: "job", Verb: "plan", Args: "FILE", Short: "say where a job would be placed, and why not elsewhere, without running it",
			Example: "dcctl job plan count.sh",
			Run: func(_ context.Context, env *Env, _ any, args []string) error {
				if len(args) != 1 {
					return usagef("job plan needs one file")
				}
				return env.callFile("jobs/plan", args[0])
			},
		},
		listCommand("job", "jobs", "list the jobs", "", "ls /dc/jobs"),
		{
			Noun: "job", Verb: "ps", Args: "JOB", Short: "show a job's status and its tasks'",
			Long: "With plain tools: cat /dc/jobs/JOB/status /dc/jobs/JOB/tasks/*/status", Example: "dcctl job ps count",
			Run: runJobPs,
		},
		{
			Noun: "job", Verb: "logs", Args: "JOB [TASK]", Short: "print what a job's tasks wrote",
			Long: "With plain tools: cat /dc/jobs/JOB/log, or tasks/TASK/stdout and stderr", Example: "dcctl job logs count 0",
			Run: func(_ context.Context, env *Env, _ any, args []string) error {
				switch len(args) {
				case 1:
					return env.copyOut(filepath.Join("jobs", args[0], "log"))
				case 2:
					return errors.Join(
						env.copyOut(filepath.Join("jobs", args[0], "tasks", args[1], "stdout")),
						env.copyOut(filepath.Join("jobs", args[0], "tasks", args[1], "stderr")))
				}
				return usagef("job logs needs a job and perhaps a task")
			},
		},
		jobVerb("stop", "stop a job: TERM, then KILL"), jobVerb("kill", "kill a job's tasks at once"), jobVerb("restart", "run a job's tasks anew"),
	}
}

func jobVerb(verb, short string) *Command {
	return &Command{
		Noun: "job", Verb: verb, Args: "JOB", Short: short,
		Long: "With plain tools: echo " + verb + " > /dc/jobs/JOB/ctl", Example: "dcctl job " + verb + " count",
		Run: func(_ context.Context, env *Env, _ any, args []string) error {
			if len(args) != 1 {
				return usagef("job %s needs one job", verb)
			}
			path, err := env.inTree(filepath.Join("jobs", args[0], "ctl"))
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString(verb + "\n")
			return err
		},
	}
}

func runJob(env *Env, file string, wait bool) error {
	var name strings.Builder
	inner := *env
	inner.Stdout = &name
	if err := inner.callFile("jobs/new", file); err != nil {
		return err
	}
	fmt.Fprint(env.Stdout, name.String())
	if !wait {
		return nil
	}
	var end strings.Builder
	inner.Stdout = &end
	if err := inner.copyOut(filepath.Join("jobs", strings.TrimSpace(name.String()), "wait")); err != nil {
		return err
	}
	fmt.Fprint(env.Stderr, end.String())
	if !strings.HasPrefix(end.String(), "succeeded") {
		return exitError(3)
	}
	return nil
}

func runJobPs(_ context.Context, env *Env, _ any, args []string) error {
	if len(args) != 1 {
		return usagef("job ps needs one job")
	}
	dir, err := env.inTree(filepath.Join("jobs", args[0]))
	if err != nil {
		return err
	}
	if err := env.copyOut(filepath.Join(dir, "status")); err != nil {
		return err
	}
	tasks, err := os.ReadDir(filepath.Join(dir, "tasks"))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join(dir, "tasks", t.Name(), "status"))
		if err != nil {
			return err
		}
		fmt.Fprintf(env.Stdout, "task %s  %s\n", t.Name(), strings.Join(strings.Split(strings.TrimSpace(string(b)), "\n"), "  "))
	}
	return nil
}

// listCommand lists a directory of the tree, or one of its children.
func listCommand(noun, tree, short, args, plain string) *Command {
	return &Command{
		Noun: noun, Verb: "ls", Args: args, Short: short, Long: "With plain tools: " + plain, Example: "dcctl " + noun + " ls",
		Run: func(_ context.Context, env *Env, _ any, given []string) error {
			if len(given) > 1 || len(given) == 1 && args == "" {
				return usagef("%s ls takes %s", noun, map[bool]string{true: "no arguments", false: "one name at most"}[args == ""])
			}
			dir, err := env.inTree(filepath.Join(append([]string{tree}, given...)...))
			if err != nil {
				return err
			}
			f, err := os.Open(dir)
			if err != nil {
				return err
			}
			defer f.Close()
			for {
				names, err := f.Readdirnames(1024)
				for _, n := range names {
					fmt.Fprintln(env.Stdout, n)
				}
				if err != nil {
					if errors.Is(err, io.EOF) {
						return nil
					}
					return err
				}
			}
		},
	}
}

func copyFile(name, tree, file string) func(context.Context, *Env, any, []string) error {
	return func(_ context.Context, env *Env, _ any, args []string) error {
		if len(args) != 1 {
			return usagef("%s needs one name", name)
		}
		return env.copyOut(filepath.Join(tree, args[0], file))
	}
}

// copyOut prints a file of the tree; a stream until it ends or dcctl is interrupted.
func (e *Env) copyOut(path string) error {
	path, err := e.inTree(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(e.Stdout, onlyReader{f})
	return err
}

// callFile sends a file of this machine (or - for standard input) through a clone file of the tree.
func (e *Env) callFile(clone, file string) error {
	path, err := e.inTree(clone)
	if err != nil {
		return err
	}
	if file == "-" {
		return call(e, path, e.Stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return call(e, path, f)
}
