package ctl

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Exit statuses of dcctl. A command may document more from 3 on.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// Env is what a command may touch of its process.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string

	// Dir and Mount are the global flags --dir and --mount; empty when not given.
	Dir, Mount string
	JSON       bool
}

// A Command is one verb of one noun. Single-word commands have no Verb.
type Command struct {
	Noun, Verb string
	Args       string // what follows the flags, for the usage line
	Short      string // one line
	Long       string // what it does, and how to do it with plain files
	Example    string // lines to type
	Exits      string // exit statuses beyond 0, 1 and 2
	Flags      func(fs *flag.FlagSet) any
	// Run does it. opts is what Flags returned. The error is printed as `dcctl: ...` and gives exit status 1,
	// a usageError 2, an exitError its own.
	Run func(ctx context.Context, env *Env, opts any, args []string) error
}

// Name is how the command is typed.
func (c *Command) Name() string { return strings.TrimSpace(c.Noun + " " + c.Verb) }

type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// An exitError ends dcctl with a status of a command's own (for `call`, `lock run`, `job run`), without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Commands lists every command, in the order of the help.
func Commands() []*Command {
	return slices.Concat(
		clusterCommands(), nodeCommands(), groupCommands(),
		dataCommands(), kvCommands(), topicCommands(), lockCommands(), jobCommands(), localCommands(), helpCommands(),
	)
}

// Main runs dcctl with its arguments (without the program's name) and returns the exit status.
func Main(ctx context.Context, env *Env, args []string) int {
	args, err := globalFlags(env, args)
	if err != nil {
		fmt.Fprintln(env.Stderr, "dcctl:", err)
		return ExitUsage
	}
	if len(args) == 0 {
		writeOverview(env.Stderr)
		return ExitUsage
	}
	if slices.Contains([]string{"help", "-h", "--help", "-help"}, args[0]) {
		return report(env, nil, help(env, args[1:]))
	}
	cmd, rest := find(args)
	if cmd == nil {
		return unknown(env, args)
	}
	fs := flag.NewFlagSet(cmd.Name(), flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	addGlobals(fs, env)
	var opts any
	if cmd.Flags != nil {
		opts = cmd.Flags(fs)
	}
	rest, err = parse(fs, rest, cmd.passThrough())
	if errors.Is(err, flag.ErrHelp) {
		writeCommand(env.Stdout, cmd)
		return ExitDone
	}
	if err != nil {
		return report(env, cmd, usagef("%v", err))
	}
	return report(env, cmd, cmd.Run(ctx, env, opts, rest))
}

// passThrough tells whether words after the first argument belong to another command (`lock run L cmd -x`).
func (c *Command) passThrough() bool { return strings.Contains(c.Args, "COMMAND") }

// parse reads flags anywhere among the arguments, as people type them; `--` ends them.
func parse(fs *flag.FlagSet, args []string, passThrough bool) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		left := fs.Args()
		if len(left) == 0 {
			return rest, nil
		}
		if n := len(args) - len(left); n > 0 && args[n-1] == "--" {
			return append(rest, left...), nil
		}
		rest = append(rest, left[0])
		if passThrough {
			return append(rest, left[1:]...), nil
		}
		args = left[1:]
	}
}

func addGlobals(fs *flag.FlagSet, env *Env) {
	fs.StringVar(&env.Dir, "dir", env.Dir, "`directory` of a node's data, or of a local cluster")
	fs.StringVar(&env.Mount, "mount", env.Mount, "`directory` where /dc is mounted")
	fs.BoolVar(&env.JSON, "json", env.JSON, "answer in JSON")
}

// globalFlags takes the flags that stand before the noun.
func globalFlags(env *Env, args []string) ([]string, error) {
	env.Dir, env.Mount = env.Getenv("DC_DIR"), env.Getenv("DC_MOUNT")
	fs := flag.NewFlagSet("dcctl", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	addGlobals(fs, env)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return append([]string{"help"}, fs.Args()...), nil
		}
		return nil, err
	}
	return fs.Args(), nil
}

func find(args []string) (cmd *Command, rest []string) {
	for _, c := range Commands() {
		if c.Verb == "" && args[0] == c.Noun {
			return c, args[1:]
		}
		if c.Verb != "" && len(args) > 1 && args[0] == c.Noun && args[1] == c.Verb {
			return c, args[2:]
		}
	}
	return nil, nil
}

// unknown says which verbs a noun has, or which nouns there are.
func unknown(env *Env, args []string) int {
	var verbs []string
	for _, c := range Commands() {
		if c.Noun == args[0] && c.Verb != "" {
			verbs = append(verbs, c.Verb)
		}
	}
	if len(verbs) == 0 {
		fmt.Fprintf(env.Stderr, "dcctl: there is no %q; `dcctl help` lists the commands\n", args[0])
		return ExitUsage
	}
	if len(args) > 1 && (args[1] == "-h" || args[1] == "--help" || args[1] == "help") {
		return report(env, nil, help(env, args[:1]))
	}
	fmt.Fprintf(env.Stderr, "dcctl: %s needs one of: %s\n", args[0], strings.Join(verbs, " "))
	return ExitUsage
}

// report prints err and turns it into an exit status.
func report(env *Env, cmd *Command, err error) int {
	if err == nil {
		return ExitDone
	}
	if e, ok := errors.AsType[exitError](err); ok {
		return int(e)
	}
	if e, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintln(env.Stderr, "dcctl:", e.msg)
		if cmd != nil {
			fmt.Fprintf(env.Stderr, "usage: %s\n`dcctl help %s` says more.\n", usageLine(cmd), cmd.Name())
		}
		return ExitUsage
	}
	fmt.Fprintln(env.Stderr, "dcctl:", explain(env, err))
	return ExitFailed
}

// explain adds, to an errno that came from the tree, the full text that the tree keeps for it.
func explain(env *Env, err error) string {
	pe, ok := errors.AsType[*os.PathError](err)
	if !ok {
		return err.Error()
	}
	mount, mountErr := env.mount()
	if mountErr != nil || !strings.HasPrefix(pe.Path, mount+"/") {
		return err.Error()
	}
	last, readErr := lastError(mount)
	if readErr != nil || last == "" {
		return err.Error()
	}
	return err.Error() + "\n  " + last
}

// lastError gives the newest line of the mount's error file; "" if there is none.
func lastError(mount string) (string, error) {
	b, err := os.ReadFile(filepath.Join(mount, ".dc/errors"))
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	return string(line), err
}
