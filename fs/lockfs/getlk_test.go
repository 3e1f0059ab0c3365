package lockfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// ask is F_GETLK for the whole file, or the first size bytes.
func ask(t *testing.T, f *os.File, typ int16, size int64) (unix.Flock_t, error) {
	t.Helper()
	l := unix.Flock_t{Type: typ, Len: size}
	err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l)
	return l, err
}

func (m *member) open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(m.dir, "lock", name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func set(t *testing.T, f *os.File, typ int16) {
	t.Helper()
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: typ}); err != nil {
		t.Fatal(err)
	}
}

func TestWhoIsInTheWayOfALockIsTold(t *testing.T) {
	ms := members(t, 2)
	here, there := ms[0].open(t, "l"), ms[1].open(t, "l")
	beside := ms[0].open(t, "other")
	set(t, beside, unix.F_WRLCK)
	steps := []struct {
		hold         int16 // by here
		asked        *os.File
		want, answer int16
	}{
		{hold: unix.F_UNLCK, asked: there, want: unix.F_WRLCK, answer: unix.F_UNLCK},
		{hold: unix.F_RDLCK, asked: there, want: unix.F_RDLCK, answer: unix.F_UNLCK},
		{hold: unix.F_RDLCK, asked: there, want: unix.F_WRLCK, answer: unix.F_RDLCK},
		{hold: unix.F_WRLCK, asked: there, want: unix.F_RDLCK, answer: unix.F_WRLCK},
		{hold: unix.F_WRLCK, asked: here, want: unix.F_WRLCK, answer: unix.F_UNLCK}, // one's own
		{hold: unix.F_UNLCK, asked: there, want: unix.F_WRLCK, answer: unix.F_UNLCK},
	}
	for i, s := range steps {
		set(t, here, s.hold)
		got, err := ask(t, s.asked, s.want, 0)
		if err != nil || got.Type != s.answer {
			t.Errorf("step %d: got type %d, %v, want %d", i, got.Type, err, s.answer)
		}
		if s.asked == there && got.Type != unix.F_UNLCK && got.Pid != 0 {
			t.Errorf("step %d: process %d of another node is shown as one of this", i, got.Pid)
		}
	}
	if _, err := ask(t, here, unix.F_WRLCK, 10); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a range: got %v, want EOPNOTSUPP", err)
	}
}
