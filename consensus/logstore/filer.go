package logstore

import (
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// A filer opens the files of a raft-wal log. It mends a fault of raft-wal v0.4.0 (its issue 31): removing a suffix of the log, which followers do
// when leaders change, marks the last file as sealed without writing the index block that a sealed file is read by, so that the log cannot
// be opened again. Such a file has no IndexStart; it is read as an unsealed one is, by going through its records.
type filer struct{ *segment.Filer }

var _ types.SegmentFiler = filer{}

func newFiler(dir string) filer { return filer{segment.NewFiler(dir, fs.New())} }

// Open opens a sealed file for reading.
func (f filer) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart == 0 {
		return f.RecoverTail(info)
	}
	return f.Filer.Open(info)
}
