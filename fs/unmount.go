package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

const connections = "/sys/fs/fuse/connections"

// unmount detaches what is mounted at path; lazily, it goes out of sight at once and away when its last user is gone.
func unmount(path string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(path, flags)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	return fusermount(path, lazy)
}

// fusermount unmounts for an ordinary user, which takes a set-uid helper.
func fusermount(path string, lazy bool) error {
	option := "-u"
	if lazy {
		option = "-uz"
	}
	var last error
	for _, bin := range []string{"/usr/bin/fusermount3", "/bin/fusermount3", "/usr/bin/fusermount", "/bin/fusermount"} {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		p, err := os.StartProcess(bin, []string{filepath.Base(bin), option, path}, &os.ProcAttr{Files: []*os.File{null, null, null}})
		_ = null.Close()
		if err != nil {
			last = err
			continue
		}
		state, err := p.Wait()
		if err != nil {
			return err
		}
		if !state.Success() {
			return fmt.Errorf("%s %s: %s", filepath.Base(bin), option, state)
		}
		return nil
	}
	return last
}

// abort cuts the FUSE connection with that number: all its calls, waiting and to come, fail, and its server ends. A connection that is gone
// already is fine.
func abort(dev string) error {
	if dev == "" {
		return nil
	}
	if list, err := os.ReadDir(connections); err != nil || len(list) == 0 {
		// In a container the control file system may not be mounted.
		_ = unix.Mount("fusectl", connections, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if list, err = os.ReadDir(connections); err != nil || len(list) == 0 {
			return dc.Errorf(dc.Unsupported, "abort", connections, "the FUSE control file system is not there")
		}
	}
	err := os.WriteFile(filepath.Join(connections, dev, "abort"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
