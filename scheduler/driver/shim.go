package driver

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// shimName is what a shim is called in process listings, so that it is not taken for the daemon.
const shimName = "dc-shim"

// Descriptors of a shim beside its orders on 0.
const (
	statusFD = 3
	aliveFD  = 4
)

// killWait is how long a shim waits for killed processes to go.
const killWait = 10 * time.Second

// ShimMain is the whole life of a shim: it is what `dcd shim` does. The daemon starts it with pipes in place; by hand it only says so.
// It gives the exit status of the process.
func ShimMain([]string) int {
	runtime.LockOSThread() // namespace, cgroups and parent-death signals belong to threads: all is done on this one
	if err := unix.Flock(aliveFD, unix.LOCK_SH); err != nil {
		fmt.Fprintln(os.Stderr, "dcd shim: the daemon runs this itself, one a task; it is of no use by hand")
		return 2
	}
	unix.CloseOnExec(statusFD)
	unix.CloseOnExec(aliveFD)
	_ = os.WriteFile("/proc/self/comm", []byte(shimName), 0)
	s := &shim{status: os.NewFile(statusFD, "status"), orders: make(chan order, 16), orphaned: make(chan struct{})}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	// Caught and dropped rather than ignored: the task would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil || json.Unmarshal(line, &s.brief) != nil {
		return 1 // the daemon has gone
	}
	s.run(in, children)
	return 0
}

// shim is one task and what is known of it.
type shim struct {
	brief    brief
	status   *os.File
	orders   chan order
	orphaned chan struct{} // closed when the daemon has gone
	begun    atomic.Bool   // the first process runs, or cannot

	group *group
	pid   int // of the first process; 0 before
	pumps sync.WaitGroup

	deadline time.Duration
	grace    <-chan time.Time // fires when a stopped task is to be killed
	exit     Exit
	cause    string // why it was ended, if the shim decided that
}

// run starts the task and sees it to its end.
func (s *shim) run(in *bufio.Reader, children <-chan os.Signal) {
	s.deadline = s.brief.Deadline
	lease, err := newAlarm()
	if err == nil {
		err = lease.set(s.deadline)
	}
	if err == nil {
		err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	go s.hear(in)
	if err == nil {
		err = s.start()
	}
	s.begun.Store(true)
	if err != nil {
		s.finish(s.cannot(err))
		return
	}
	s.tell(news{PID: s.pid})
	var limit <-chan time.Time
	if s.brief.Time > 0 {
		limit = time.After(s.brief.Time)
	}
	orphaned := s.orphaned
	for {
		select {
		case <-children:
			if ws, ended := s.reap(); ended {
				s.finish(ws)
				return
			}
		case <-lease.C:
			if Now() >= s.deadline {
				s.fence("its node's lease ended")
			}
		case <-orphaned:
			orphaned = nil
			s.fence("its node's daemon ended")
		case <-limit:
			s.exit.TimedOut = true
			s.cause = fmt.Sprintf("it ran longer than its limit of %s", s.brief.Time)
			s.stop()
		case <-s.grace:
			s.killAll()
		case o := <-s.orders:
			s.obey(o, lease)
		}
	}
}

func (s *shim) obey(o order, lease *alarm) {
	if o.Deadline > s.deadline {
		s.deadline = o.Deadline
		if lease.set(s.deadline) != nil {
			s.fence("its lease cannot be extended")
		}
	}
	if o.Signal > 0 {
		_ = unix.Kill(-s.pid, syscall.Signal(o.Signal))
	}
	if o.Stop {
		s.stop()
	}
	if o.Kill {
		s.killAll()
	}
}

// hear reads orders until the pipe ends. Before the task has begun (preparing it may hang in the kernel) that ends the shim at once.
func (s *shim) hear(in *bufio.Reader) {
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			if !s.begun.Load() {
				os.Exit(1)
			}
			close(s.orphaned)
			return
		}
		var o order
		if json.Unmarshal(bytes.TrimSpace(line), &o) == nil {
			s.orders <- o
		}
	}
}

func (s *shim) tell(n news) {
	line, err := json.Marshal(n)
	if err == nil {
		_, _ = s.status.Write(append(line, '\n')) // a daemon that has gone needs no news
	}
}

func (s *shim) stop() {
	if s.grace != nil {
		return
	}
	_ = unix.Kill(-s.pid, unix.SIGTERM)
	_ = unix.Kill(-s.pid, unix.SIGCONT) // a stopped process hears TERM when it goes on
	s.grace = time.After(s.brief.Grace)
}

func (s *shim) fence(why string) {
	s.exit.Fenced = true
	s.cause = why
	s.killAll()
}

// killAll kills every process of the task. The end of the first one comes in as any other.
func (s *shim) killAll() {
	_ = unix.Kill(-s.pid, unix.SIGKILL)
	s.sweep(killWait)
}

// sweep kills what there is of the task until nothing is left but what is to be reaped, at most for the time given.
func (s *shim) sweep(wait time.Duration) {
	if s.group != nil && len(s.group.dirs()) > 0 {
		s.group.kill(wait)
		return
	}
	for begin := Now(); Now()-begin < wait; time.Sleep(killPause) {
		left := 0
		for _, pid := range descendants() {
			switch {
			case pid != s.pid && reaped(pid):
			case dead(pid):
			default:
				left++
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left == 0 {
			return
		}
	}
}

// reaped buries a child that has ended.
func reaped(pid int) bool {
	got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil && got == pid
}

// dead tells whether a process has ended and waits to be reaped.
func dead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

// descendants lists the processes below this one; orphans among them have become its children.
func descendants() (all []int) {
	next := []int{os.Getpid()}
	for len(next) > 0 {
		pid := next[0]
		next = next[1:]
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, t := range threads {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
			for _, f := range bytes.Fields(text) {
				if child, err := strconv.Atoi(string(f)); err == nil {
					all = append(all, child)
					next = append(next, child)
				}
			}
		}
	}
	return all
}

// reap buries dead children. ended is true when the task's first process was among them.
func (s *shim) reap() (ws unix.WaitStatus, ended bool) {
	for {
		var one unix.WaitStatus
		pid, err := unix.Wait4(-1, &one, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return ws, ended
		}
		if pid == s.pid && (one.Exited() || one.Signaled()) {
			ws, ended = one, true
		}
	}
}

// cannot is the end of a task that did not begin.
func (s *shim) cannot(err error) unix.WaitStatus {
	code := 126
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoCommand) {
		code = 127
	}
	s.cause = "it cannot be started: " + err.Error()
	return unix.WaitStatus(code << 8)
}

// finish makes an end of everything and reports it.
func (s *shim) finish(ws unix.WaitStatus) {
	s.sweep(killWait)
	s.reap()
	drained := make(chan struct{})
	go func() {
		s.pumps.Wait()
		close(drained)
	}()
	select { // nobody is left who could write, unless a descriptor was passed to somebody else
	case <-drained:
	case <-time.After(time.Second):
	}
	s.exit.Code = ws.ExitStatus()
	if ws.Signaled() {
		s.exit.Signal = int(ws.Signal())
		s.exit.Code = 128 + s.exit.Signal
	}
	if s.group != nil {
		s.exit.OOM = s.group.oom()
		s.group.remove()
	}
	s.exit.Reason = s.reason(ws)
	s.tell(news{Exit: &s.exit})
}

func (s *shim) reason(ws unix.WaitStatus) string {
	switch {
	case s.cause != "":
		return s.cause
	case s.exit.OOM && s.exit.Code != 0:
		return fmt.Sprintf("it ran out of memory: its limit is %d MiB", s.brief.MemoryBytes/dc.MiB)
	case ws.Signaled():
		return fmt.Sprintf("ended by signal %s", unix.SignalName(ws.Signal()))
	case s.exit.Code != 0:
		return fmt.Sprintf("exit status %d", s.exit.Code)
	}
	return ""
}
