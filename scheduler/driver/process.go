package driver

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"missingos/srv/dc"
)

// A Task is what is to be run.
type Task struct {
	ID          string // names its directory and cgroup; never used before
	Command     []string
	Script      string            // or a program text that begins with #!
	Env         map[string]string // beside the basic ones (PATH, HOME, ...) and DC_ROOT
	UID, GID    uint32
	Groups      []uint32
	MilliCPU    int64
	MemoryBytes int64
	Time        time.Duration // after which it is stopped and has failed; 0: no limit
	Grace       time.Duration // from TERM to KILL
}

// An Exit tells how a task ended.
type Exit struct {
	Code     int    `json:"code"`   // of its first process; 128 + Signal if a signal ended it, 127 and 126 if it could not be started
	Signal   int    `json:"signal"` // that ended its first process
	Reason   string `json:"reason"` // in words, unless it was Code 0
	OOM      bool   `json:"oom"`
	TimedOut bool   `json:"timed_out"`
	Fenced   bool   `json:"fenced"` // killed because its lease ended or its daemon did
}

// order is a line that the daemon sends to the shim.
type order struct {
	Deadline time.Duration `json:"deadline,omitempty"` // of the lease
	Stop     bool          `json:"stop,omitempty"`
	Kill     bool          `json:"kill,omitempty"`
	Signal   int           `json:"signal,omitempty"`
}

// news is a line that the shim sends to the daemon.
type news struct {
	PID  int    `json:"pid,omitempty"`
	Note string `json:"note,omitempty"`
	Exit *Exit  `json:"exit,omitempty"`
}

// brief is the first line that the shim gets.
type brief struct {
	Task
	Node       string
	Dir        string
	MountPoint string
	Deadline   time.Duration
	Segment    int64
}

// Process is a task that was started.
type Process struct {
	id      string
	cmd     *exec.Cmd
	orders  *os.File
	started chan struct{}
	done    chan struct{}

	mu   sync.Mutex
	pid  int
	note string
	exit Exit
}

// Start runs a task until it ends, its lease (a time of [Now]) does, or this process does. It returns when the shim has its orders; the task may not run yet.
func (d *Driver) Start(t Task, lease time.Duration) (*Process, error) {
	dir := d.taskDir(t.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, dc.Errorf(dc.KindOf(err), "task.start", dir, "%w", err)
	}
	line, err := json.Marshal(brief{Task: t, Node: d.node, Dir: dir, MountPoint: d.cfg.MountPoint, Deadline: lease, Segment: segmentBytes})
	if err != nil {
		return nil, dc.Errorf(dc.Invalid, "task.start", dir, "%w", err)
	}
	p := &Process{id: t.ID, started: make(chan struct{}), done: make(chan struct{})}
	status, err := d.spawn(p)
	if err != nil {
		return nil, dc.Errorf(dc.Internal, "task.start", dir, "the task's shim does not start: %w", err)
	}
	go p.follow(d, status)
	_ = p.orders.SetWriteDeadline(time.Now().Add(orderTimeout))
	if _, err := p.orders.Write(append(line, '\n')); err != nil {
		p.orders.Close() // it has died or will: follow reports it
	}
	return p, nil
}

// spawn starts the shim with its pipes.
func (d *Driver) spawn(p *Process) (status *os.File, err error) {
	ordersR, ordersW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersR.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		ordersW.Close()
		return nil, err
	}
	defer statusW.Close()
	alive, err := os.OpenFile(filepath.Join(d.cfg.Dir, lockName), os.O_RDWR, 0)
	if err == nil {
		defer alive.Close()
		p.cmd = exec.Command(d.cfg.Shim[0], d.cfg.Shim[1:]...)
		p.cmd.Stdin = ordersR
		p.cmd.ExtraFiles = []*os.File{statusW, alive}
		p.cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
		p.cmd.Dir = "/"
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err = p.cmd.Start()
	}
	if err != nil {
		ordersW.Close()
		statusR.Close()
		return nil, err
	}
	p.orders = ordersW
	return statusR, nil
}

// follow hears the shim until it has gone.
func (p *Process) follow(d *Driver, status *os.File) {
	defer close(p.done)
	var end *Exit
	in := bufio.NewScanner(status)
	in.Buffer(nil, dc.MaxCtlBytes)
	for in.Scan() {
		var n news
		if json.Unmarshal(in.Bytes(), &n) != nil {
			continue
		}
		p.hear(n)
		if n.Exit != nil {
			end = n.Exit
		}
	}
	status.Close()
	err := p.cmd.Wait()
	p.orders.Close()
	g := detect().group(d.node, p.id)
	for !g.kill(clearWait) { // nothing is left if the shim did its work; never report an end that is none
		d.log.Error("processes of a task do not die", "task", p.id)
	}
	g.remove()
	if err := os.RemoveAll(filepath.Join(d.taskDir(p.id), workDir)); err != nil {
		d.log.Warn("a task's working directory is not removed", "task", p.id, "err", err)
	}
	if end == nil {
		end = &Exit{Code: 137, Reason: fmt.Sprintf("its shim was killed (%v), and the task with it", err), Fenced: true}
	}
	p.mu.Lock()
	p.exit = *end
	p.mu.Unlock()
}

func (p *Process) hear(n news) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Note != "" {
		p.note = n.Note
	}
	if n.PID != 0 {
		p.pid = n.PID
		close(p.started)
	}
}

// Started is closed once the task's first process runs; never, if it cannot.
func (p *Process) Started() <-chan struct{} { return p.started }

// Done is closed once the task has ended: nothing of it runs any more.
func (p *Process) Done() <-chan struct{} { return p.done }

// PID is the task's first process, 0 before it has started.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Note says what of the task's limits is not enforced here; valid once it has started.
func (p *Process) Note() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.note
}

// Exit tells how the task ended, once it is Done.
func (p *Process) Exit() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Extend moves the end of the lease.
func (p *Process) Extend(lease time.Duration) { p.order(order{Deadline: lease}) }

// Stop sends TERM to the task's process group, and kills the task after its grace.
func (p *Process) Stop() { p.order(order{Stop: true}) }

// Kill kills the task. One that has not begun yet loses its shim, which may hang in preparing it.
func (p *Process) Kill() {
	if p.PID() == 0 {
		p.orders.Close()
		return
	}
	p.order(order{Kill: true})
}

// Signal sends a signal to the task's process group.
func (p *Process) Signal(sig int) { p.order(order{Signal: sig}) }

// orderTimeout bounds the writing of an order to a shim that does not read.
const orderTimeout = time.Second

func (p *Process) order(o order) {
	line, err := json.Marshal(o)
	if err != nil {
		return
	}
	_ = p.orders.SetWriteDeadline(time.Now().Add(orderTimeout))
	if _, err := p.orders.Write(append(line, '\n')); errors.Is(err, os.ErrDeadlineExceeded) {
		p.orders.Close() // half a line may be on its way: the end of the pipe ends the task
	}
}
