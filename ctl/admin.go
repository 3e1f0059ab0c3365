package ctl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

const (
	defaultDir      = "/var/lib/dc"
	defaultLocalDir = ".dc-local"
	socketName      = "dcd.sock"
	adminTimeout    = 20 * time.Second
)

// sockets lists the admin sockets to try: the directory's own, or those of a local cluster's nodes in it.
func (e *Env) sockets() []string {
	dirs := []string{e.Dir}
	if e.Dir == "" {
		dirs = []string{defaultDir, defaultLocalDir}
	}
	var found []string
	for _, d := range dirs {
		for _, pattern := range []string{filepath.Join(d, socketName), filepath.Join(d, "n*", socketName)} {
			matches, _ := filepath.Glob(pattern) // the pattern is well-formed unless d has brackets; then nothing matches
			found = append(found, matches...)
		}
	}
	return found
}

// withAdmin calls f with an admin client of the first node that answers.
func (e *Env) withAdmin(ctx context.Context, f func(ctx context.Context, c dcpb.AdminClient) error) error {
	if _, own := ctx.Deadline(); !own {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, adminTimeout)
		defer cancel()
	}
	sockets := e.sockets()
	if len(sockets) == 0 {
		where := e.Dir
		if where == "" {
			where = defaultDir + " or ./" + defaultLocalDir
		}
		return fmt.Errorf("no node runs at %s (no %s there); is dcd running, and is --dir right?", where, socketName)
	}
	var last error
	for _, s := range sockets {
		if err := probe(ctx, s); err != nil {
			last = err
			continue
		}
		cc, err := dialAdmin(s)
		if err != nil {
			return err
		}
		defer cc.Close()
		return rpc.FromStatus(f(ctx, dcpb.NewAdminClient(cc)))
	}
	return fmt.Errorf("no node answers: %w", last)
}

// probe asks one socket for its status with a short limit, so that a paused or dead daemon does not stand in the way of a live one.
func probe(ctx context.Context, socket string) error {
	cc, err := dialAdmin(socket)
	if err != nil {
		return err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = dcpb.NewAdminClient(cc).Status(ctx, &dcpb.AdminStatusRequest{Header: &dcpb.Header{}})
	if err != nil {
		return fmt.Errorf("%s: %w", socket, rpc.FromStatus(err))
	}
	return nil
}

func dialAdmin(socket string) (*grpc.ClientConn, error) {
	abs, err := filepath.Abs(socket)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("unix://"+abs, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// mount finds where /dc is: the flag, what a node says, or /dc.
func (e *Env) mount() (string, error) {
	if e.Mount != "" {
		return filepath.Clean(e.Mount), nil
	}
	if e.Dir == "" {
		if _, err := os.Stat("/dc/.dc"); err == nil {
			return "/dc", nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	var mount string
	err := e.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
		st, err := c.Status(ctx, &dcpb.AdminStatusRequest{Header: &dcpb.Header{}})
		mount = st.GetMount()
		return err
	})
	if err != nil {
		return "", err
	}
	if mount == "" {
		return "", fmt.Errorf("the node runs without a mount; name another node's with --mount")
	}
	return mount, nil
}
