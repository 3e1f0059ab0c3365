package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"missingos/srv/dc"
)

// incomingFile holds the rows of a snapshot as they come in, in the shard's directory: one stream, without gaps, whatever number of senders it
// took. It is only ever appended to, each frame has its checksum, and after a crash what is whole of it is kept.
const (
	incomingFile = "INCOMING"
	syncEvery    = 8 * dc.MiB // of it are on stable storage, at least
)

// An incoming is a snapshot that is being received, or has been.
type incoming struct {
	path  string
	hooks hooks
	file  *os.File

	format   int
	mark     Mark
	clock    int64
	size     uint64 // what the sender thinks all rows take
	rows     uint64
	last     []byte // the last row's key; what comes next comes after it
	taken    uint64 // bytes of rows, before compression
	unsynced int
	whole    bool // the last frame is there

	grown func(*incoming) // is told, if set
}

// openIncoming opens what is left in a shard's directory, or nothing. It cuts off a torn end.
func openIncoming(dir string, h hooks) (*incoming, error) {
	in := &incoming{path: filepath.Join(dir, incomingFile), hooks: h}
	var err error
	if in.file, err = os.OpenFile(in.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	sr, err := openSnapshot(in.file)
	if err != nil {
		return in, in.clear() // new, or torn in its first frame
	}
	in.adopt(sr)
	good := sr.consumed
	for {
		rows, done, err := sr.next()
		if err != nil {
			break
		}
		good = sr.consumed
		in.count(sr, rows)
		if done {
			in.whole = true
			break
		}
	}
	_, err = in.file.Seek(good, io.SeekStart)
	if err = errors.Join(err, in.file.Truncate(good)); err != nil {
		return nil, errors.Join(err, in.file.Close())
	}
	return in, nil
}

func (in *incoming) adopt(sr *snapshotReader) {
	in.format, in.mark, in.clock, in.size = sr.format, sr.mark, sr.clock, sr.size
}

func (in *incoming) count(sr *snapshotReader, rows []physicalRow) {
	in.rows += uint64(len(rows))
	in.taken += uint64(len(sr.payload))
	if n := len(rows); n > 0 {
		in.last = append(in.last[:0], rows[n-1].key...)
	}
}

// clear makes it empty.
func (in *incoming) clear() error {
	*in = incoming{path: in.path, hooks: in.hooks, file: in.file, grown: in.grown}
	_, err := in.file.Seek(0, io.SeekStart)
	return errors.Join(err, in.file.Truncate(0))
}

// want is what to ask a sender for.
func (in *incoming) want() Pull {
	p := Pull{Format: SnapshotFormat}
	if in.format > 1 && in.rows > 0 { // format 1 cannot be gone on with
		p.At, p.After = in.mark.Index, bytes.Clone(in.last)
	}
	return p
}

// take appends what a sender streams. A sender that cannot go on where this ends begins anew, and so does this; goesOn says that
// it did not. got tells whether anything has been added; what has stays, also with an error.
func (in *incoming) take(ctx context.Context, r io.Reader) (goesOn, got bool, err error) {
	sr, err := openSnapshot(r)
	if err != nil {
		return false, false, err
	}
	goesOn = len(sr.after) > 0
	switch {
	case !goesOn:
		if err := in.begin(sr); err != nil {
			return false, false, err
		}
	case sr.mark != in.mark || sr.clock != in.clock || sr.format != in.format || !bytes.Equal(sr.after, in.last):
		return true, false, dc.Errorf(dc.Corrupt, "", "", "the sender goes on after key %q of entry %d; after %q of %d was asked for", sr.after, sr.mark.Index, in.last, in.mark.Index)
	}
	for {
		rows, done, err := sr.next()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return goesOn, got, err
		}
		if done {
			return goesOn, true, in.end()
		}
		in.count(sr, rows)
		if err := in.append(sr.raw()); err != nil {
			return goesOn, got, err
		}
		got = true
	}
}

// begin starts the file with a stream's magic and first frame.
func (in *incoming) begin(sr *snapshotReader) error {
	if err := in.clear(); err != nil {
		return err
	}
	in.adopt(sr)
	if err := in.hooks.at("incoming cleared"); err != nil {
		return err
	}
	if err := in.append([]byte(snapshotMagic(sr.format)), sr.raw()); err != nil {
		return err
	}
	return in.sync()
}

func (in *incoming) append(parts ...[]byte) error {
	for _, b := range parts {
		n, err := in.file.Write(b)
		in.unsynced += n
		if err != nil {
			return err
		}
	}
	if in.grown != nil {
		in.grown(in)
	}
	if err := in.hooks.at("incoming written"); err != nil {
		return err
	}
	if in.unsynced < syncEvery {
		return nil
	}
	return in.sync()
}

func (in *incoming) sync() error {
	if err := errors.Join(in.file.Sync(), syncPath(filepath.Dir(in.path))); err != nil {
		return err
	}
	in.unsynced = 0
	return in.hooks.at("incoming synced")
}

// end writes the last frame, with the number of all rows: that of the stream counts only its own.
func (in *incoming) end() error {
	var b bytes.Buffer
	f := newFrames(&b, in.format)
	f.write(binary.AppendUvarint([]byte{'e'}, in.rows))
	if err := f.flush(); err != nil {
		return err
	}
	in.whole = true
	if err := in.append(b.Bytes()); err != nil {
		in.whole = false
		return err
	}
	return in.sync()
}

// stream reads the whole file.
func (in *incoming) stream() (*snapshotReader, error) {
	if _, err := in.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return openSnapshot(in.file)
}

// leftIncoming tells which entry's state the file holds, in part or whole; 0 if there is none. It removes one that is of no use to a shard
// whose state is that of entry durable, on stable storage.
func leftIncoming(dir string, durable dc.Index) (dc.Index, error) {
	path := filepath.Join(dir, incomingFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	sr, err := openSnapshot(f)
	_ = f.Close()
	if err == nil && sr.mark.Index > durable {
		return sr.mark.Index, nil
	}
	return 0, errors.Join(os.Remove(path), syncPath(dir))
}
