package datafs

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"missingos/srv/dc/file"
)

const (
	recentSlots = 256
	recentFor   = 5 * time.Millisecond
	groupsFor   = time.Second
)

// recentLookups keeps, for a moment, what each thread looked up last. The kernel follows a LOOKUP by a GETATTR of the same inode, to
// check permissions with attributes it may not cache; answering that from the LOOKUP halves the questions a path costs. The entry is used
// once, by the thread's very next request, so nothing that an application can tell apart from one call is ever stale. The questions for access control lists that
// follow are answered likewise where there are none.
// It also keeps the supplementary groups of processes, for a second.
type recentLookups struct {
	slots [recentSlots]recentSlot
}

type recentSlot struct {
	mu     sync.Mutex
	thread uint32
	attr   file.Attr
	used   bool // attr has answered a GETATTR
	at     time.Time

	uid, gid uint32
	process  uint32
	list     []uint32
	listAt   time.Time
}

func (r *recentLookups) slot(thread uint32) *recentSlot { return &r.slots[thread%recentSlots] }

// put notes a lookup. Threads of other pid namespaces are all 0: for them nothing is kept.
func (r *recentLookups) put(thread uint32, a file.Attr) {
	if thread == 0 {
		return
	}
	s := r.slot(thread)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.thread, s.attr, s.at, s.used = thread, a, time.Now(), false
}

// answered notes attributes that a GETATTR of the thread was answered with: the next GETATTR is another call's.
func (r *recentLookups) answered(thread uint32, a file.Attr) {
	r.put(thread, a)
	r.take(thread, a.Ino)
}

// plain tells that ino, which the thread's last request looked up or asked for just now, has no access control lists and no attributes: what the kernel asks
// within the same call to check permissions.
func (r *recentLookups) plain(thread uint32, ino file.Ino) (noACL, noXattr bool) {
	s := r.slot(thread)
	s.mu.Lock()
	defer s.mu.Unlock()
	if thread == 0 || s.thread != thread || s.attr.Ino != ino || time.Since(s.at) >= recentFor {
		return false, false
	}
	return !s.attr.ACL, !s.attr.Xattrs
}

// take gives what the thread's last request looked up, if that was ino and just now.
func (r *recentLookups) take(thread uint32, ino file.Ino) (file.Attr, bool) {
	s := r.slot(thread)
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := thread != 0 && s.thread == thread && s.attr.Ino == ino && time.Since(s.at) < recentFor && !s.used
	if s.thread == thread {
		s.used = true
		if s.attr.Ino != ino {
			s.thread = 0
		}
	}
	return s.attr, ok
}

func (r *recentLookups) drop(thread uint32) {
	s := r.slot(thread)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.thread == thread {
		s.thread = 0
	}
}

// groups reads the supplementary groups of a process from /proc, which takes none of the locks that it may hold.
func (r *recentLookups) groups(pid, uid, gid uint32) []uint32 {
	s := r.slot(pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == pid && s.uid == uid && s.gid == gid && time.Since(s.listAt) < groupsFor {
		return s.list
	}
	s.process, s.uid, s.gid, s.listAt, s.list = pid, uid, gid, time.Now(), nil
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil || pid == 0 {
		return nil
	}
	_, rest, _ := bytes.Cut(status, []byte("\nGroups:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	for _, word := range strings.Fields(string(line)) {
		if g, err := strconv.ParseUint(word, 10, 32); err == nil {
			s.list = append(s.list, uint32(g))
		}
	}
	return s.list
}
