package synth

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"missingos/srv/dc"
)

// A Mishap is one recent error of one caller, with the words that an errno cannot carry.
type Mishap struct {
	Time    time.Time
	UID     uint32
	PID     uint32
	Command string
	Text    string
}

// String is its line in /dc/.dc/errors.
func (m Mishap) String() string {
	return fmt.Sprintf("%s %s[%d] %s", m.Time.UTC().Format(time.RFC3339), m.Command, m.PID, strings.ReplaceAll(m.Text, "\n", " "))
}

// maxErrorUsers bounds the users whose errors are kept; the one who has been quiet longest is forgotten.
const maxErrorUsers = 64

// errorLog keeps the last dc.MaxRecentErrors errors of each user.
type errorLog struct {
	mu     sync.Mutex
	byUser map[uint32][]Mishap // oldest first
}

func (l *errorLog) add(uid uint32, m Mishap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byUser == nil {
		l.byUser = make(map[uint32][]Mishap)
	}
	if _, ok := l.byUser[uid]; !ok && len(l.byUser) >= maxErrorUsers {
		l.dropQuietestLocked()
	}
	list := append(l.byUser[uid], m)
	if over := len(list) - dc.MaxRecentErrors; over > 0 {
		list = slices.Delete(list, 0, over)
	}
	l.byUser[uid] = list
}

func (l *errorLog) dropQuietestLocked() {
	var quietest uint32
	var last time.Time
	for uid, list := range l.byUser {
		if t := list[len(list)-1].Time; last.IsZero() || t.Before(last) {
			quietest, last = uid, t
		}
	}
	delete(l.byUser, quietest)
}

// list gives what uid may see, newest first.
func (l *errorLog) list(uid uint32) []Mishap {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Mishap
	for owner, list := range l.byUser {
		if uid == owner || uid == 0 {
			out = append(out, list...)
		}
	}
	slices.Reverse(out) // so that among equal times the latest added comes first
	slices.SortStableFunc(out, func(a, b Mishap) int { return b.Time.Compare(a.Time) })
	return out[:min(len(out), dc.MaxRecentErrors)]
}

// forget drops what uid may see.
func (l *errorLog) forget(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if uid == 0 {
		clear(l.byUser)
		return
	}
	delete(l.byUser, uid)
}
