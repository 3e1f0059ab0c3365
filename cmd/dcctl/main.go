// Command dcctl is the cluster's command line; see package ctl.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"missingos/ctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	env := &ctl.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	status := ctl.Main(ctx, env, os.Args[1:])
	stop()
	os.Exit(status)
}
