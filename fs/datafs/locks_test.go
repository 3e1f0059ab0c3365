package datafs_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// lockTests are about locks among processes of one node. Locks belong to processes, so they are tried by a script of several.
var lockTests = []syscallTest{
	{"byte-range locks", false, func(t *testing.T, a, _ string) {
		python(t, a, `
f = open("f", "w+b")
fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)
def tries(start, n, kind=fcntl.LOCK_EX):
    try:
        fcntl.lockf(open("f", "r+b"), kind | fcntl.LOCK_NB, n, start)
        return True
    except BlockingIOError:
        return False
want(other(lambda: tries(0, 5)), True)
want(other(lambda: tries(0, 6)), False)
want(other(lambda: tries(14, 1, fcntl.LOCK_SH)), False)
want(other(lambda: tries(15, 100)), True)
open("f").close() # any close of the file gives up the process's locks
want(other(lambda: tries(0, 6)), True)
`)
	}},
	{"locks go with their process", false, func(t *testing.T, a, _ string) {
		python(t, a, `
f = open("f", "w+b")
def hold():
    fcntl.lockf(open("f", "r+b"), fcntl.LOCK_EX)
    g = open("f", "r+b"); fcntl.flock(g, fcntl.LOCK_EX)
    ready.set(); time.sleep(100)
ready = multiprocessing.Event()
p = multiprocessing.Process(target=hold); p.start(); ready.wait()
p.kill()
fcntl.lockf(f, fcntl.LOCK_EX); fcntl.flock(f, fcntl.LOCK_EX)
p.join()
`)
	}},
	{"a wait for a lock can be interrupted", false, func(t *testing.T, a, _ string) {
		python(t, a, `
f = open("f", "w+b"); fcntl.lockf(f, fcntl.LOCK_EX)
def waits():
    def stop(*_): raise InterruptedError
    signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, 0.1)
    try: fcntl.lockf(open("f", "r+b"), fcntl.LOCK_EX)
    except InterruptedError: return "interrupted"
want(other(waits), "interrupted")
`)
	}},
	{"waiting in a circle is refused", false, func(t *testing.T, a, _ string) {
		python(t, a, `
f, g = open("f", "w+b"), open("g", "w+b"); fcntl.lockf(f, fcntl.LOCK_EX)
def waits():
    x, y = open("f", "r+b"), open("g", "r+b")
    fcntl.lockf(y, fcntl.LOCK_EX); ready.set()
    try: fcntl.lockf(x, fcntl.LOCK_EX)
    except OSError as e: os._exit(e.errno)
ready = multiprocessing.Event()
p = multiprocessing.Process(target=waits); p.start(); ready.wait()
mine = 0
try: fcntl.lockf(g, fcntl.LOCK_EX)
except OSError as e: mine = e.errno
fcntl.lockf(f, fcntl.LOCK_UN)
p.join()
want(sorted([mine, p.exitcode]), [0, errno.EDEADLK]) # whoever waited second
`)
	}},
	{"whole-file locks belong to descriptions", false, func(t *testing.T, a, _ string) {
		python(t, a, `
f, g = open("f", "w+b"), open("f", "r+b")
fcntl.flock(f, fcntl.LOCK_SH); fcntl.flock(g, fcntl.LOCK_SH)
try: fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB); want("granted", "refused")
except BlockingIOError: pass
f.close(); fcntl.flock(g, fcntl.LOCK_EX) # waits: the kernel tells of the last close of a file a moment after close(2)
`)
	}},
}

// python runs a script in dir.
func python(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("python3", "-c", fmt.Sprintf(`
import errno, fcntl, multiprocessing, os, signal, time
os.chdir(%q)
multiprocessing.set_start_method("fork")
def want(got, wanted):
    if got != wanted: raise SystemExit("got %%r, want %%r" %% (got, wanted))
def other(f):
    q = multiprocessing.SimpleQueue()
    p = multiprocessing.Process(target=lambda: q.put(f())); p.start()
    try: return q.get()
    finally: p.join()
%s`, dir, script))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Errorf("%s", strings.TrimSpace(string(out)))
	} else {
		check(t, err)
	}
}
