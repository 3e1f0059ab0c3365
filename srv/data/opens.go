package data

import (
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// opens knows which inodes the sessions of a group's users have open, as far as they have told this node.
type opens struct {
	grace time.Duration

	mu       sync.Mutex
	sessions map[uint64]*session
	files    map[file.Ino]int // how many sessions have it open
	purging  map[file.Ino]bool
	nameless int // files without names being made
}

type session struct {
	heard time.Time
	files map[file.Ino]uint64 // the number of the session's last open of it
}

func (s *Service) openFiles(g dc.GroupID) *opens {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opens[g]
	if o == nil {
		o = &opens{grace: s.cfg.Grace, sessions: map[uint64]*session{}, files: map[file.Ino]int{}, purging: map[file.Ino]bool{}}
		s.opens[g] = o
	}
	return o
}

func (o *opens) sessionLocked(id uint64) *session {
	x := o.sessions[id]
	if x == nil {
		x = &session{files: map[file.Ino]uint64{}}
		o.sessions[id] = x
	}
	x.heard = time.Now()
	return x
}

// opened notes an open, unless the file is being purged. number grows with every open of the session.
func (o *opens) opened(id, number uint64, ino file.Ino) (ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.purging[ino] {
		return false
	}
	x := o.sessionLocked(id)
	if _, ok := x.files[ino]; !ok {
		o.files[ino]++
	}
	x.files[ino] = max(x.files[ino], number)
	return true
}

// startPurge keeps an inode from being opened, unless some session has it open.
func (o *opens) startPurge(ino file.Ino) (ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files[ino] > 0 {
		return false
	}
	o.purging[ino] = true
	return true
}

// endPurge forgets which inodes were being purged: they are gone, or another leader has them.
func (o *opens) endPurge() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.purging)
}

// report replaces what is known of the session's opens up to number; later ones, whose notes overtook the report, stay.
func (o *opens) report(id, number uint64, inos []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x := o.sessionLocked(id)
	open := make(map[file.Ino]bool, len(inos))
	for _, n := range inos {
		ino := file.Ino(n)
		open[ino] = true
		if _, ok := x.files[ino]; !ok {
			o.files[ino]++
			x.files[ino] = number
		}
	}
	for ino, at := range x.files {
		if at <= number && !open[ino] {
			o.closeLocked(x, ino)
		}
	}
	if len(x.files) == 0 {
		delete(o.sessions, id)
	}
}

func (o *opens) closeLocked(x *session, ino file.Ino) {
	delete(x.files, ino)
	if o.files[ino]--; o.files[ino] == 0 {
		delete(o.files, ino)
	}
}

// expire drops sessions that have been silent for too long.
func (o *opens) expire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, x := range o.sessions {
		if time.Since(x.heard) < o.grace {
			continue
		}
		for ino := range x.files {
			o.closeLocked(x, ino)
		}
		delete(o.sessions, id)
	}
}

// making notes that files without names are being made (1), or have been (-1).
func (o *opens) making(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.nameless += n
}

// isMaking tells whether some are being made.
func (o *opens) isMaking() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.nameless > 0
}
