package synth

import (
	"bytes"
	"context"
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// A descriptor's writes are conditioned on a fencing token by its attribute user.dc.fence: setfattr -n user.dc.fence -v TOKEN@LOCK /dev/fd/8. The
// kernel tells of an attribute only the file and who sets it, not by which descriptor; so it is set for the descriptors of the file which that process has
// open for writing, or else the nearest of its ancestors that has any: a shell's, when setfattr does it for the shell.

// FenceXattr is the attribute's name.
const FenceXattr = "user.dc.fence"

// ParseFence reads the attribute's value; an empty one takes the condition away.
func ParseFence(value []byte) (dc.Fence, error) {
	if len(bytes.TrimSpace(value)) == 0 {
		return dc.Fence{}, nil
	}
	return dc.ParseFence(string(value))
}

// maxAncestors bounds how far up a descriptor's owner is looked for.
const maxAncestors = 16

// OpenedBy gives those of handles that the process of thread caller has opened, or else the nearest of its ancestors that has opened any. opener tells
// which thread opened a handle; one that has ended is nobody's. Without any the error says what to do.
func OpenedBy[H any](caller uint32, handles []H, opener func(H) uint32) ([]H, error) {
	byProcess := map[uint32][]H{}
	for _, h := range handles {
		if process, _, ok := processOf(opener(h)); ok {
			byProcess[process] = append(byProcess[process], h)
		}
	}
	thread := caller
	for range maxAncestors {
		process, parent, ok := processOf(thread)
		if !ok {
			break
		}
		if mine := byProcess[process]; len(mine) > 0 {
			return mine, nil
		}
		thread = parent
	}
	return nil, dc.Errorf(dc.Invalid, "setxattr", FenceXattr,
		"no descriptor of this file is open for writing in the calling process or one above it: open it first, as in exec 8<>FILE; setfattr -n %s -v TOKEN@LOCK /dev/fd/8", FenceXattr)
}

// processOf gives the process of a thread, and that one's parent.
func processOf(thread uint32) (process, parent uint32, ok bool) {
	if thread == 0 {
		return 0, 0, false // of another pid namespace
	}
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(thread), 10) + "/status")
	if err != nil {
		return 0, 0, false
	}
	field := func(name string) uint32 {
		_, rest, _ := bytes.Cut(status, []byte("\n"+name+":\t"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		n, _ := strconv.ParseUint(string(line), 10, 32)
		return uint32(n)
	}
	process, parent = field("Tgid"), field("PPid")
	return process, parent, process != 0
}

// setFence conditions the writes of the caller's descriptors of a file.
func (s *Server) setFence(h *fuse.InHeader, value []byte) error {
	f, err := ParseFence(value)
	if err != nil {
		return err
	}
	s.mu.Lock()
	var of []*open
	for _, o := range s.handles {
		if o.node == h.NodeId && o.writes {
			of = append(of, o)
		}
	}
	s.mu.Unlock()
	mine, err := OpenedBy(h.Pid, of, func(o *open) uint32 { return o.opener })
	if err != nil {
		return err
	}
	for _, o := range mine {
		o.fence.Store(&f)
	}
	return nil
}

// fenced gives ctx the descriptor's condition.
func (o *open) fenced(ctx context.Context) context.Context {
	if f := o.fence.Load(); f != nil && !f.IsZero() {
		return dc.WithFence(ctx, *f)
	}
	return ctx
}

func writes(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }
