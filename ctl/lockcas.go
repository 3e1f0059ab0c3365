package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"missingos/srv/dc"
)

// lockCas is the command that sets a file of /dc/lock if it is at a version.
func lockCas() *Command {
	return &Command{
		Noun: "lock", Verb: "cas", Args: "PATH VERSION", Short: "set a file of /dc/lock to standard input if it is at VERSION (0: if there is none)",
		Long:    "Prints the new version. With plain tools: write {\"if\":[{\"path\":P,\"version\":V}],\"do\":[{\"put\":P,\"value\":...}]} into /dc/lock/.dc/txn and read the answer.",
		Example: "v=$(getfattr -n user.dc.version --only-values /dc/lock/config); echo new | dcctl lock cas config $v",
		Exits:   ", 3 the file is at another version, which is printed",
		Run: func(_ context.Context, env *Env, _ any, args []string) error {
			if len(args) != 2 {
				return usagef("lock cas needs a path and a version")
			}
			version, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil {
				return usagef("lock cas: %q is not a version", args[1])
			}
			value, err := io.ReadAll(io.LimitReader(env.Stdin, dc.MaxLockBytes+1))
			if err != nil {
				return err
			}
			return swap(env, args[0], version, value)
		},
	}
}

func swap(env *Env, path string, version uint64, value []byte) error {
	condition := map[string]any{"path": path, "version": version}
	if version == 0 {
		condition = map[string]any{"path": path, "absent": true}
	}
	request, err := json.Marshal(map[string]any{
		"if":   []any{condition},
		"do":   []any{map[string]any{"put": path, "value64": value}},
		"else": []any{map[string]any{"get": path}},
	})
	if err != nil {
		return err
	}
	file, err := env.inTree("lock/.dc/txn")
	if err != nil {
		return err
	}
	var answer bytes.Buffer
	quiet := *env
	quiet.Stdout = &answer
	if err := call(&quiet, file, bytes.NewReader(request)); err != nil {
		return err
	}
	var a struct {
		Succeeded bool   `json:"succeeded"`
		Revision  uint64 `json:"revision"`
		Results   []struct {
			Version uint64 `json:"version"`
		} `json:"results"`
	}
	if err := json.Unmarshal(answer.Bytes(), &a); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if a.Succeeded {
		_, err := fmt.Fprintln(env.Stdout, a.Revision)
		return err
	}
	now := uint64(0)
	if len(a.Results) > 0 {
		now = a.Results[0].Version
	}
	fmt.Fprintln(env.Stdout, now)
	fmt.Fprintf(env.Stderr, "dcctl: %s is at version %d, not %d\n", path, now, version)
	return exitError(3)
}
