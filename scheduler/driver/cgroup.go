package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is the directory of all tasks in each hierarchy.
const cgroupRoot = "dc"

// hierarchies are the cgroup hierarchies that this machine has mounted.
type hierarchies struct {
	v2     string // mount point of the v2 hierarchy, perhaps without controllers; "" if there is none
	v2Own  bool   // the controllers are v2's
	cpu    string // directory under which v1 groups are made: mount point and own group
	memory string
}

// detect reads the mounts. Nothing is changed.
func detect() hierarchies {
	var h hierarchies
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return h
	}
	own := ownGroups()
	for line := range strings.Lines(string(mounts)) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			if h.v2 == "" && shows(left[4], unix.CGROUP2_SUPER_MAGIC) {
				h.v2 = left[4]
			}
		case "cgroup":
			if !shows(left[4], unix.CGROUP_SUPER_MAGIC) {
				continue
			}
			options := strings.Split(right[2], ",")
			if h.cpu == "" && slices.Contains(options, "cpu") {
				h.cpu = filepath.Join(left[4], own["cpu"])
			}
			if h.memory == "" && slices.Contains(options, "memory") {
				h.memory = filepath.Join(left[4], own["memory"])
			}
		}
	}
	if h.v2 != "" {
		controllers, _ := os.ReadFile(filepath.Join(h.v2, "cgroup.controllers"))
		h.v2Own = bytes.Contains(controllers, []byte("memory"))
	}
	return h
}

// shows tells whether a file system of that type is what one sees at path: another may be mounted over it.
func shows(path string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == magic
}

// ownGroups gives this process' group in each v1 hierarchy.
func ownGroups() map[string]string {
	own := map[string]string{}
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, c := range strings.Split(parts[1], ",") {
			own[c] = parts[2]
		}
	}
	return own
}

// group is the cgroups of one task, or of a node's tasks (task "").
type group struct {
	h       hierarchies
	v2      string // directories; "" if there is none
	cpu     string // v1
	memory  string // v1
	missing []string
}

func (h hierarchies) group(node, task string) *group {
	g := &group{h: h}
	under := func(base string) string {
		if base == "" {
			return ""
		}
		return filepath.Join(base, cgroupRoot, node, task)
	}
	g.v2 = under(h.v2)
	if !h.v2Own {
		g.cpu, g.memory = under(h.cpu), under(h.memory)
	}
	return g
}

func (g *group) dirs() []string {
	return slices.DeleteFunc([]string{g.v2, g.cpu, g.memory}, func(dir string) bool { return dir == "" })
}

// create makes the groups and sets limits. What it cannot do it says in note; directories that cannot be made are forgotten.
func (g *group) create(milliCPU, memoryBytes int64) (note string) {
	if g.h.v2Own {
		g.delegate()
	}
	for _, x := range []struct {
		dir  *string
		what string
	}{{&g.v2, "kill as a whole"}, {&g.cpu, "cpu"}, {&g.memory, "memory"}} {
		if *x.dir != "" && os.MkdirAll(*x.dir, 0o755) != nil {
			g.lacks(x.what)
			*x.dir = ""
		}
	}
	if g.v2 == "" {
		g.lacks("kill as a whole")
	}
	shares, bytes := max(2, min(milliCPU*1024/1000, 262144)), strconv.FormatInt(memoryBytes, 10)
	if g.h.v2Own {
		g.limit(g.v2, "cpu.weight", strconv.FormatInt(1+(shares-2)*9999/262142, 10), "cpu")
		g.limit(g.v2, "memory.max", bytes, "memory")
		g.limit(g.v2, "memory.swap.max", "0", "")
	} else {
		g.limit(g.cpu, "cpu.shares", strconv.FormatInt(shares, 10), "cpu")
		g.limit(g.memory, "memory.limit_in_bytes", bytes, "memory")
		g.limit(g.memory, "memory.memsw.limit_in_bytes", bytes, "")
	}
	if len(g.missing) == 0 {
		return ""
	}
	return "not enforced for want of cgroups: " + strings.Join(g.missing, ", ")
}

// limit writes a setting; what names it in the note if that fails, "" if it may (swap is not always accounted).
func (g *group) limit(dir, file, value, what string) {
	if dir == "" || os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644) != nil {
		g.lacks(what)
	}
}

func (g *group) lacks(what string) {
	if what != "" && !slices.Contains(g.missing, what) {
		g.missing = append(g.missing, what)
	}
}

// delegate turns the v2 controllers on, from the root down to the node's directory, where that is allowed.
func (g *group) delegate() {
	dir := g.h.v2
	for _, name := range []string{"", cgroupRoot, filepath.Base(filepath.Dir(g.v2))} {
		dir = filepath.Join(dir, name)
		_ = os.Mkdir(dir, 0o755)
		for _, c := range []string{"+cpu", "+memory"} {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(c), 0o644)
		}
	}
}

// enter moves the calling thread into the v1 groups, so that a process forked by it begins there. leave moves it back.
func (g *group) enter() (leave func(), err error) {
	tid := []byte(strconv.Itoa(unix.Gettid()))
	var back []string
	leave = func() {
		for _, dir := range back {
			_ = os.WriteFile(filepath.Join(dir, "tasks"), tid, 0o644)
		}
	}
	for _, x := range []struct{ dir, base string }{{g.cpu, g.h.cpu}, {g.memory, g.h.memory}} {
		if x.dir == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(x.dir, "tasks"), tid, 0o644); err != nil {
			leave()
			return nil, fmt.Errorf("join %s: %w", x.dir, err)
		}
		back = append(back, x.base)
	}
	return leave, nil
}

// oom tells whether the kernel has killed a process of the group for want of memory.
func (g *group) oom() bool {
	for _, x := range []struct{ dir, file string }{{g.v2, "memory.events"}, {g.memory, "memory.oom_control"}} {
		if x.dir == "" {
			continue
		}
		text, _ := os.ReadFile(filepath.Join(x.dir, x.file))
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
				return true
			}
		}
	}
	return false
}

// pids lists the processes of the group.
func (g *group) pids() (pids []int) {
	for _, dir := range g.dirs() {
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for f := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killPause is between two looks at whether all processes have gone.
const killPause = 2 * time.Millisecond

// kill ends every process of the group and waits until they are gone, at most for the time given. It reports whether they are.
func (g *group) kill(wait time.Duration) bool {
	for begin := Now(); ; time.Sleep(killPause) {
		pids := g.pids()
		if len(pids) == 0 {
			return true
		}
		if g.v2 != "" { // before Linux 5.14 there is no cgroup.kill; one by one then, until no new one appears
			_ = os.WriteFile(filepath.Join(g.v2, "cgroup.kill"), []byte("1"), 0o644)
		}
		for _, pid := range pids {
			if pid != os.Getpid() { // a shim's first thread is in its task's v1 groups for a moment
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if Now()-begin > wait {
			return false
		}
	}
}

// remove removes the groups, which must hold no processes; a group that holds groups stays.
func (g *group) remove() {
	for _, dir := range g.dirs() {
		for range 50 { // a group is busy for a moment after its last process has gone
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) || holdsGroups(dir) {
				break
			}
			time.Sleep(killPause)
		}
	}
}

func holdsGroups(dir string) bool {
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.IsDir() })
}

// clear ends and removes what tasks an earlier daemon has left in the groups of a node.
func (h hierarchies) clear(node string, wait time.Duration) error {
	tasks := map[string]bool{}
	for _, dir := range h.group(node, "").dirs() {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				tasks[e.Name()] = true
			}
		}
	}
	for task := range tasks {
		g := h.group(node, task)
		if !g.kill(wait) {
			return fmt.Errorf("processes of task %s, left by an earlier daemon, do not die", task)
		}
		g.remove()
	}
	return nil
}
