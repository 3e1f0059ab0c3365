package lease

import (
	"time"

	"missingos/srv/dc/file"
)

// recent remembers when inodes changed last, of those that changed lately: in two generations, the older of which is forgotten when the newer is full
// or old.
type recent struct {
	cur, prev         map[file.Ino]uint64
	curFrom, prevFrom uint64        // the number before each generation's first change
	age               time.Duration // how long a generation is added to
	born              time.Time     // of cur
	lossy             time.Time     // when something was last forgotten, or not known, that had changed just before
}

const recentChanges = 32_768 // in a generation

func newRecent(age time.Duration) recent {
	now := time.Now()
	return recent{cur: map[file.Ino]uint64{}, prev: map[file.Ino]uint64{}, age: age, born: now, lossy: now}
}

// add notes that ino changed, as change number seq.
func (r *recent) add(ino file.Ino, seq uint64, now time.Time) {
	if age := now.Sub(r.born); age >= r.age || len(r.cur) >= recentChanges {
		if age < r.age {
			r.lossy = now
		}
		r.prev, r.prevFrom = r.cur, r.curFrom
		r.cur, r.curFrom, r.born = map[file.Ino]uint64{}, seq-1, now
	}
	r.cur[ino] = seq
}

// after tells whether ino changed after change number seq, or may have.
func (r *recent) after(ino file.Ino, seq uint64) bool {
	if seq < r.prevFrom {
		return true
	}
	return r.cur[ino] > seq || r.prev[ino] > seq
}

// each calls fn with every inode that is remembered.
func (r *recent) each(fn func(file.Ino)) {
	for ino := range r.cur {
		fn(ino)
	}
	for ino := range r.prev {
		fn(ino)
	}
}
