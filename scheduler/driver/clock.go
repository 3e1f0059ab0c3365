package driver

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since boot, counting suspended time (CLOCK_BOOTTIME): the clock of leases.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("driver: no CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// An alarm goes off when a time of the lease clock has come. Unlike a Go timer it does so right after a suspend.
type alarm struct {
	file *os.File
	C    chan struct{} // gets a token each time it goes off
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	a := &alarm{file: os.NewFile(uintptr(fd), "lease"), C: make(chan struct{}, 1)}
	go a.run()
	return a, nil
}

func (a *alarm) run() {
	var b [8]byte
	for {
		if _, err := a.file.Read(b[:]); err != nil {
			return
		}
		select {
		case a.C <- struct{}{}:
		default:
		}
	}
}

func (a *alarm) set(at time.Duration) error {
	raw, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(at), 1))}
		serr = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil)
	})
	if err != nil {
		return err
	}
	return serr
}
