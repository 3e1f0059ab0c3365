package transport

import (
	"time"

	"missingos/srv/dc"
)

// repeatEvery is how often one in that many messages is sent that repeat what was acknowledged before.
const repeatEvery = 20

// A peer is what a leader's lane knows of the group's replica on another node.
type peer struct {
	said  said
	saved int       // messages that were not sent
	beat  time.Time // when it last answered a heartbeat
	term  uint64    // of that heartbeat
}

// said is a message without entries that the peer has acknowledged.
type said struct {
	term, prevIndex, prevTerm, commit uint64
	life                              uint64 // of the process that did; zero: nothing was acknowledged
}

func (l *Lane) peerLocked(n dc.NodeID) *peer {
	p := l.peers[n]
	if p == nil {
		if l.peers == nil {
			l.peers = map[dc.NodeID]*peer{}
		}
		p = &peer{}
		l.peers[n] = p
	}
	return p
}

// acknowledged notes that n's process life, known before r was sent, has r.
func (l *Lane) acknowledged(n dc.NodeID, r *AppendRequest, life uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peerLocked(n).said = said{term: r.Term, prevIndex: r.PrevIndex, prevTerm: r.PrevTerm, commit: r.Commit, life: life}
}

// answered notes that n has just answered a heartbeat.
func (l *Lane) answered(n dc.NodeID, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peerLocked(n)
	p.beat, p.term = time.Now(), term
}

// forget takes nothing for acknowledged any more.
func (l *Lane) forget(n dc.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.peers, n)
}

// repeats tells whether r says only what n's process has acknowledged, which answers heartbeats, so that r need not be sent this time.
func (l *Lane) repeats(n dc.NodeID, r *AppendRequest, life uint64) bool {
	if len(r.Entries) > 0 || life == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[n]
	if p == nil || p.said != (said{term: r.Term, prevIndex: r.PrevIndex, prevTerm: r.PrevTerm, commit: r.Commit, life: life}) {
		return false
	}
	if p.term != r.Term || time.Since(p.beat) > l.t.freshBeats() {
		return false
	}
	p.saved++
	return p.saved%repeatEvery != 0
}

// freshBeats is how old the latest answer to a heartbeat is of a peer that answers all, at most.
func (t *Transport) freshBeats() time.Duration { return t.cfg.Pulse + 2*t.cfg.Gather }
