package linear

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// fileTable uses rows as files of a mounted table, with plain system calls: the standard library repeats some of them by itself.
type fileTable struct{ dir string }

// The context bounds nothing here: the mount bounds its operations itself.
func (t fileTable) Do(_ context.Context, c RowCall) (RowAnswer, error) {
	path := filepath.Join(t.dir, c.Key)
	switch c.Verb {
	case Get:
		value, err := readFile(path)
		return fileOutcome(err, RowAnswer{Done: true, Value: value}, unix.ENOENT)
	case Put:
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
		if err != nil { // the row is there, so that opening it changes nothing
			return RowAnswer{}, errNothing
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte(c.Value))
		return fileOutcome(err, RowAnswer{Done: true}, 0)
	case Create:
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return fileOutcome(err, RowAnswer{Done: true}, unix.EEXIST)
	case Delete:
		return fileOutcome(unix.Unlink(path), RowAnswer{Done: true}, unix.ENOENT)
	case Swap:
		a, err := t.txn(map[string]any{
			"if": []any{map[string]any{"key": c.Key, "value": c.Old}},
			"do": []any{map[string]any{"put": c.Key, "value": c.Value}},
		})
		return RowAnswer{Done: a.Succeeded}, err
	case Add:
		a, err := t.txn(map[string]any{"do": []any{map[string]any{"add": c.Key, "by": 1}}})
		return RowAnswer{Done: true, Value: number(a.Values[c.Key])}, err
	}
	panic(fmt.Sprintf("linear: no verb %s", c.Verb))
}

type txnAnswer struct {
	Succeeded bool
	Values    map[string]string
}

// txn writes a request into the table's clone file and reads its answer.
func (t fileTable) txn(request map[string]any) (a txnAnswer, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return a, err
	}
	fd, err := unix.Open(filepath.Join(t.dir, ".dc", "txn"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return a, errNothing
	}
	defer unix.Close(fd)
	if _, err = unix.Write(fd, append(body, '\n')); err == nil {
		var n int
		buf := make([]byte, 4096)
		if n, err = unix.Read(fd, buf); err == nil {
			err = json.Unmarshal(buf[:n], &a)
		}
	}
	if err != nil {
		return a, fmt.Errorf("%w: txn: %w", errUnknown, err)
	}
	return a, nil
}

// fileOutcome: refused is the errno that means that the state did not allow it.
func fileOutcome(err error, done RowAnswer, refused unix.Errno) (RowAnswer, error) {
	switch {
	case err == nil:
		return done, nil
	case refused != 0 && errors.Is(err, refused):
		return RowAnswer{}, nil
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ESTALE):
		// There is no daemon behind the mount, which tells nothing; or the row was removed or replaced between open and write.
		return RowAnswer{}, errNothing
	}
	return RowAnswer{}, fmt.Errorf("%w: %w", errUnknown, err)
}

func readFile(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	return string(buf[:max(n, 0)]), err
}

// fileLocker takes locks with flock(2) on the files of a directory under /dc/lock.
type fileLocker struct{ dir string }

// Acquire blocks in flock(2) until the lock is granted or the mount gives up.
func (l fileLocker) Acquire(_ context.Context, lock string) (Held, error) {
	path := filepath.Join(l.dir, lock)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	h := fileHeld{fd: fd}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// The token is the name's present holder's: ours, if we hold the lock before and after asking.
	buf := make([]byte, 32)
	n, err := unix.Getxattr(path, "user.dc.fence", buf)
	if err == nil && h.Trusted() {
		h.fence, _ = strconv.ParseUint(string(buf[:n]), 10, 64)
	}
	return h, nil
}

type fileHeld struct {
	fd    int
	fence uint64
}

func (h fileHeld) Fence() uint64 { return h.fence }

// Trusted: once the lock is lost, every use of its descriptor fails.
func (h fileHeld) Trusted() bool {
	_, err := unix.Pread(h.fd, make([]byte, 1), 0)
	return err == nil
}

func (h fileHeld) Release(context.Context) error {
	err := unix.Flock(h.fd, unix.LOCK_UN)
	return errors.Join(err, unix.Close(h.fd))
}
