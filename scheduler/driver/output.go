package driver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"missingos/srv/dc"
)

// Names of a task's outputs.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// A task's output is kept in two segments: the current one, and the one before it (".1"). What was thrown away is counted (".dropped").
const segmentBytes = dc.MaxTaskOutput / 2

// A keeper writes one output of a task.
type keeper struct {
	path    string
	segment int64
	file    *os.File
	size    int64
	older   int64 // bytes in the segment before
	dropped int64
}

func newKeeper(dir, stream string, segment int64) (*keeper, error) {
	k := &keeper{path: filepath.Join(dir, stream), segment: segment}
	return k, k.open()
}

func (k *keeper) open() (err error) {
	k.file, err = os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	k.size = 0
	return err
}

// keep stores b. What the disk does not take is counted as dropped: a full disk does not stop a task.
func (k *keeper) keep(b []byte) {
	for len(b) > 0 {
		if k.size >= k.segment {
			k.rotate()
		}
		part := b[:min(int64(len(b)), max(k.segment-k.size, 1))]
		n, err := k.file.Write(part)
		k.size += int64(n)
		if err != nil {
			k.drop(int64(len(part) - n))
		}
		b = b[len(part):]
	}
}

func (k *keeper) drop(n int64) {
	k.dropped += n
	tmp := k.path + ".dropped.new"
	if os.WriteFile(tmp, []byte(strconv.FormatInt(k.dropped, 10)), 0o600) == nil {
		_ = os.Rename(tmp, k.path+".dropped")
	}
}

func (k *keeper) rotate() {
	if k.older > 0 {
		k.drop(k.older)
	}
	k.older = k.size
	k.file.Close()
	_ = os.Rename(k.path, k.path+".1")
	if err := k.open(); err != nil {
		k.file, _ = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
}

func (k *keeper) close() { k.file.Close() }

// pump moves what r gives into the keeper until it ends.
func (k *keeper) pump(r io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		k.keep(buf[:n])
		if err != nil {
			return
		}
	}
}

// A view is an output as readers see it: a note about what is gone, the segment before, the current one.
type view struct {
	note       string
	old, now   *os.File // old may be nil
	oldN, nowN int64
}

func openView(dir, stream string) (*view, error) {
	path := filepath.Join(dir, stream)
	for {
		v := &view{}
		var err error
		if v.now, err = os.Open(path); err != nil {
			if errors.Is(err, fs.ErrNotExist) && !exists(dir) {
				return nil, dc.Errorf(dc.NotFound, "task.output", "", "this node keeps no output of that attempt")
			}
			return v, nil // nothing written yet
		}
		if v.old, err = os.Open(path + ".1"); err == nil {
			v.oldN = size(v.old)
		}
		if text, err := os.ReadFile(path + ".dropped"); err == nil {
			n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			v.note = fmt.Sprintf("[%19d bytes of earlier output are not kept]\n", n)
		}
		v.nowN = size(v.now)
		again, err := os.Stat(path)
		if err == nil {
			if same, serr := v.now.Stat(); serr == nil && os.SameFile(same, again) {
				return v, nil
			}
		}
		v.close() // it was rotated meanwhile
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func size(f *os.File) int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

func (v *view) size() int64 { return int64(len(v.note)) + v.oldN + v.nowN }

func (v *view) readAt(p []byte, off int64) (n int, err error) {
	for _, part := range []struct {
		src  io.ReaderAt
		size int64
	}{{strings.NewReader(v.note), int64(len(v.note))}, {v.old, v.oldN}, {v.now, v.nowN}} {
		if off >= part.size {
			off -= part.size
			continue
		}
		m, err := part.src.ReadAt(p[n:n+int(min(int64(len(p)-n), part.size-off))], off)
		n += m
		if err != nil && !errors.Is(err, io.EOF) || n == len(p) {
			return n, nil
		}
		off = 0
	}
	return n, nil
}

func (v *view) close() {
	if v.old != nil {
		v.old.Close()
	}
	if v.now != nil {
		v.now.Close()
	}
}
