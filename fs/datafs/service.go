package datafs

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// Names is the namespace and the attributes. client.Data is one.
type Names interface {
	Lookup(ctx context.Context, dir file.Ino, name string) (file.Attr, error)
	Stat(ctx context.Context, ino file.Ino, access uint32) (file.Attr, error)
	List(ctx context.Context, dir file.Ino, after string, limit int) ([]file.Entry, error)
	Readlink(ctx context.Context, ino file.Ino) ([]byte, error)
	Make(ctx context.Context, m file.Make) (a file.Attr, existed bool, err error)
	Link(ctx context.Context, ino, dir file.Ino, name string) (file.Attr, error)
	Unlink(ctx context.Context, dir file.Ino, name string, rmdir bool) (gone file.Ino, err error)
	Rename(ctx context.Context, dir file.Ino, name string, newDir file.Ino, newName string, flags uint32) (gone file.Ino, err error)
	SetAttr(ctx context.Context, ino file.Ino, a file.SetAttr) (file.Attr, error)
	Xattr(ctx context.Context, ino file.Ino, name string) ([]byte, error)
	Xattrs(ctx context.Context, ino file.Ino) ([]string, error)
	SetXattr(ctx context.Context, ino file.Ino, name string, value []byte, flags uint32) error
	RemoveXattr(ctx context.Context, ino file.Ino, name string) error
	Space(ctx context.Context) (file.Space, error)
}

// Content is what files hold. client.Data is one.
type Content interface {
	Open(ctx context.Context, ino file.Ino, access uint32) (file.Content, error)
	Closed(ino file.Ino)
	Report(ctx context.Context) error
	Content(ctx context.Context, ino file.Ino, from int64) (file.Content, error)
	Commit(ctx context.Context, c file.Commit) (file.Attr, error)
	Append(ctx context.Context, a file.Append) (at file.Attr, off int64, err error)
	Clone(ctx context.Context, c file.Clone) (n int64, to file.Attr, err error)
	WriteBlock(ctx context.Context, ino file.Ino, data []byte) (file.Location, error)
	ReadBlock(ctx context.Context, id file.BlockID, nodes []dc.NodeID, off int64, dst []byte) (int, error)
	SyncBlocks(ctx context.Context, placed [][]dc.NodeID) error
}

// Service is both.
type Service interface {
	Names
	Content
}
