package lockfs

import (
	"context"
	"strconv"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// A View is a read-only look at the store: its past, or what the nearest node has of it.
type View interface {
	Stat(ctx context.Context, path string) (client.LockFile, error)
	Read(ctx context.Context, path string) (client.LockFile, error)
	List(ctx context.Context, path, after string, limit int) ([]client.LockFile, error)
}

// past is the directory `.dc/at`: `at/REV/...` is the tree below base as it was at a revision. It lists nothing: there are too many.
type past struct {
	store Store
	key   string
	base  string
}

func (p *past) Key() string { return p.key }

func (p *past) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o555}, nil
}

func (p *past) Lookup(ctx context.Context, name string) (synth.Node, error) {
	rev, err := strconv.ParseUint(name, 10, 64)
	if err != nil || rev == 0 {
		return nil, dc.Errorf(dc.NotFound, "lock.at", name, "want at/REV/PATH with a revision, as .dc/stat and user.dc.version give them")
	}
	v := p.store.At(dc.Revision(rev))
	if _, err := v.Stat(ctx, p.base); err != nil {
		return nil, err
	}
	return &viewDir{view: v, key: p.key + "/" + name, path: p.base}, nil
}

func (p *past) List(context.Context, string, int) ([]synth.DirEntry, error) { return nil, nil }

// A viewDir is a directory in a view.
type viewDir struct {
	view View
	key  string
	path string
}

// Key ends in a slash, so that a name that is a file at another time is another inode.
func (d *viewDir) Key() string { return d.key + "/" }

func (d *viewDir) Attr(ctx context.Context) (synth.Attr, error) {
	f, err := d.view.Stat(ctx, d.path)
	return viewAttr(f), err
}

// viewAttr is a file's attributes without the permission to write.
func viewAttr(f client.LockFile) synth.Attr {
	return synth.Attr{IsDir: f.Dir, Mode: f.Mode &^ 0o222, Size: f.Size, UID: f.UID, GID: f.GID, ModTime: f.ModTime}
}

func (d *viewDir) Lookup(ctx context.Context, name string) (synth.Node, error) {
	path := join(d.path, name)
	f, err := d.view.Stat(ctx, path)
	if err != nil {
		return nil, err
	}
	k := d.key + "/" + name
	if f.Dir {
		return &viewDir{view: d.view, key: k, path: path}, nil
	}
	read := synth.Value(k, synth.ValueSpec{
		Attr: viewAttr(f),
		Read: func(ctx context.Context) ([]byte, error) {
			f, err := d.view.Read(ctx, path)
			return f.Value, err
		},
		Size: func(ctx context.Context) (int64, error) {
			f, err := d.view.Stat(ctx, path)
			return f.Size, err
		},
	})
	return &viewFile{File: read, view: d.view, path: path}, nil
}

func (d *viewDir) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	files, err := d.view.List(ctx, d.path, after, min(limit, dc.MaxScanPage))
	if err != nil {
		return nil, err
	}
	out := make([]synth.DirEntry, 0, len(files))
	for _, f := range files {
		k := d.key + "/" + f.Path
		if f.Dir {
			k += "/"
		}
		out = append(out, synth.DirEntry{Name: f.Path, IsDir: f.Dir, Key: k})
	}
	return out, nil
}

// A viewFile is a file in a view; it tells its version as the file itself does.
type viewFile struct {
	synth.File
	view View
	path string
}

func (f *viewFile) Getxattr(ctx context.Context, name string) ([]byte, error) {
	if name != xattrVersion {
		return nil, dc.NoAttr
	}
	got, err := f.view.Stat(ctx, f.path)
	return number(got.Version), err
}

func (f *viewFile) Listxattr(context.Context) ([]string, error) { return []string{xattrVersion}, nil }

func (f *viewFile) Setxattr(_ context.Context, name string, _ []byte, _ uint32) error {
	return noXattr(f.path, name)
}

func (f *viewFile) Removexattr(_ context.Context, name string) error { return noXattr(f.path, name) }
