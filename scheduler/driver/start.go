package driver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// treePath is where programs expect the tree.
	treePath = "/dc"
	// privateWork is where a task of a root daemon finds its working directory.
	privateWork = "/run/dc/task"
	scriptName  = ".script"
	basicPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

var errNoCommand = errors.New("command not found")

// start makes the task's surroundings on this thread and forks its first process.
func (s *shim) start() error {
	b := &s.brief
	root := os.Geteuid() == 0
	if !root && (b.UID != uint32(os.Geteuid())) {
		return fmt.Errorf("this node's daemon runs as uid %d and cannot run tasks of uid %d", os.Geteuid(), b.UID)
	}
	work := filepath.Join(b.Dir, workDir)
	if err := s.makeWork(work, root); err != nil {
		return err
	}
	tree := b.MountPoint
	if root {
		var err error
		if work, tree, err = s.isolate(work, tree); err != nil {
			return err
		}
	}
	if err := os.Chdir(work); err != nil {
		return err
	}
	env := s.environment(work, tree)
	argv, err := s.program(work, env)
	if err != nil {
		return err
	}
	s.group = detect().group(b.Node, b.ID)
	if note := s.group.create(b.MilliCPU, b.MemoryBytes); note != "" {
		s.tell(news{Note: note})
	}
	return s.fork(argv, env, root)
}

func (s *shim) makeWork(work string, root bool) error {
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	if s.brief.Script != "" {
		if err := os.WriteFile(filepath.Join(work, scriptName), []byte(s.brief.Script), 0o755); err != nil {
			return err
		}
	}
	if !root {
		return nil
	}
	return os.Chown(work, int(s.brief.UID), int(s.brief.GID))
}

// isolate gives the task its own view of mounts: this node's tree at /dc, the working directory at a path that its owner can reach. It gives the paths
// of both in that view. Unmounting still comes in from outside, so that a task does not keep the node's mount busy.
func (s *shim) isolate(work, tree string) (newWork, newTree string, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		s.tell(news{Note: "no mount namespace: " + err.Error()})
		return work, tree, nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return "", "", fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll(privateWork, 0o755); err == nil {
		if err := unix.Mount(work, privateWork, "", unix.MS_BIND, ""); err == nil {
			work = privateWork
		}
	}
	if tree == "" || tree == treePath {
		return work, tree, nil
	}
	if _, err := os.Lstat(treePath); err != nil {
		_ = os.Mkdir(treePath, 0o755)
	}
	if err := unix.Mount(tree, treePath, "", unix.MS_BIND, ""); err != nil {
		s.tell(news{Note: fmt.Sprintf("this node's tree is at %s, not at %s: %v", tree, treePath, err)})
		return work, tree, nil
	}
	return work, treePath, nil
}

// environment is the basic one, then the task's.
func (s *shim) environment(work, tree string) []string {
	env := map[string]string{"PATH": basicPath, "HOME": "/", "SHELL": "/bin/sh", "LANG": "C.UTF-8", "TMPDIR": "/tmp", "PWD": work}
	if u, err := user.LookupId(strconv.FormatUint(uint64(s.brief.UID), 10)); err == nil {
		env["HOME"], env["USER"], env["LOGNAME"] = u.HomeDir, u.Username, u.Username
	}
	if tree != "" {
		env["DC_ROOT"] = tree
	}
	for name, value := range s.brief.Env {
		env[name] = value
	}
	out := make([]string, 0, len(env))
	for name, value := range env {
		out = append(out, name+"="+value)
	}
	slices.Sort(out)
	return out
}

// program gives the arguments to run; $NAME in those of a command stands for a variable of the task.
func (s *shim) program(work string, env []string) ([]string, error) {
	if s.brief.Script != "" {
		return []string{filepath.Join(work, scriptName)}, nil
	}
	lookup := func(name string) string {
		for _, e := range env {
			if value, ok := strings.CutPrefix(e, name+"="); ok {
				return value
			}
		}
		return ""
	}
	argv := slices.Clone(s.brief.Command)
	if len(argv) == 0 {
		return nil, fmt.Errorf("there is nothing to run: %w", os.ErrInvalid)
	}
	shell := len(argv) > 2 && argv[1] == "-c" // its text is the shell's to expand
	for i := range argv {
		if !shell {
			argv[i] = os.Expand(argv[i], lookup)
		}
	}
	if err := os.Setenv("PATH", lookup("PATH")); err != nil {
		return nil, err
	}
	path, err := exec.LookPath(argv[0])
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w", argv[0], errNoCommand)
	}
	if err != nil {
		return nil, err
	}
	argv[0] = path
	return argv, nil
}

// fork starts the first process, in its cgroups and in a session of its own, to die with this thread.
func (s *shim) fork(argv, env []string, root bool) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	files := []uintptr{null.Fd()}
	for _, stream := range []string{Stdout, Stderr} {
		k, err := newKeeper(s.brief.Dir, stream, s.brief.Segment)
		if err != nil {
			return err
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		files = append(files, w.Fd())
		s.pumps.Go(func() {
			k.pump(r)
			k.close()
		})
	}
	attr := &syscall.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}}
	if root {
		attr.Sys.Credential = &syscall.Credential{Uid: s.brief.UID, Gid: s.brief.GID, Groups: s.brief.Groups}
	}
	if s.group.v2 != "" {
		dir, err := os.Open(s.group.v2)
		if err != nil {
			return err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	leave, err := s.group.enter()
	if err != nil {
		return err
	}
	defer leave()
	if Now() >= s.deadline {
		s.exit.Fenced = true
		return errors.New("its node's lease ended before it began")
	}
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return &os.PathError{Op: "run", Path: argv[0], Err: err}
	}
	s.pid = pid
	return nil
}
