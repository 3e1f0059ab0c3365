package ctl

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kvSplit is the command that divides a range of a table.
func kvSplit() *Command {
	return &Command{
		Noun: "kv", Verb: "split", Args: "TABLE KEY", Short: "divide a table: from the row KEY on it is a range of its own",
		Long: "Prints the table's ranges, a line each: start, end, group, leader, bytes. A transaction lies in one range, so split where rows have nothing to do with each other.\n" +
			"With plain tools: echo split KEY > /dc/kv/TABLE/.dc/ctl; cat /dc/kv/TABLE/.dc/ranges",
		Example: "dcctl kv split users m",
		Run: func(_ context.Context, env *Env, _ any, args []string) error {
			if len(args) != 2 {
				return usagef("kv split needs a table and a key")
			}
			path, err := env.inTree(filepath.Join("kv", args[0], ".dc/ctl"))
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			key := strings.ReplaceAll(strconv.Quote(args[1]), " ", `\x20`) // one word
			if _, err := f.WriteString("split " + key + "\n"); err != nil {
				return err
			}
			return env.copyOut(filepath.Join("kv", args[0], ".dc/ranges"))
		},
	}
}
