package datafs_test

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser runs do in a thread that is another user, and throws the thread away.
func asUser(uid int, groups []int, do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		list := make([]uint32, 0, len(groups))
		for _, g := range groups {
			list = append(list, uint32(g))
		}
		if err := setThreadGroups(list); err != nil {
			result <- err
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			result <- errno
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			result <- errno
			return
		}
		result <- do()
	}()
	return <-result
}

// setThreadGroups is setgroups(2) for this thread alone.
func setThreadGroups(list []uint32) error {
	var first unsafe.Pointer
	if len(list) > 0 {
		first = unsafe.Pointer(&list[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(list)), uintptr(first), 0); errno != 0 {
		return errno
	}
	return nil
}
