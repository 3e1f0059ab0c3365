package data

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// Lookup finds what a name in a directory names.
func (s *Service) Lookup(ctx context.Context, q *dcpb.DataLookupRequest) (*dcpb.DataAttrReply, error) {
	out := &dcpb.DataAttrReply{}
	var err error
	out.Grant, err = s.view(ctx, "lookup", q.Header, func(rd storage.Reader, who *command.DataCaller, l *look) error {
		l.about(q.Parent)
		in, err := data.Lookup(rd, who, file.Ino(q.Parent), q.Name)
		if err == nil {
			l.about(in.Ino)
			out.Attr = attr(in)
		}
		if l.conn != nil && dc.KindOf(err) == dc.NotFound && data.IsDir(rd, file.Ino(q.Parent)) {
			out.Absent, err = true, nil
		}
		return err
	})
	return out, err
}

// Stat reads the attributes of an inode and checks access to it if asked to.
func (s *Service) Stat(ctx context.Context, q *dcpb.DataStatRequest) (*dcpb.DataAttrReply, error) {
	out := &dcpb.DataAttrReply{}
	var err error
	out.Grant, err = s.view(ctx, "stat", q.Header, func(rd storage.Reader, who *command.DataCaller, l *look) error {
		l.about(q.Ino)
		if q.Access != 0 {
			if err := data.Access(rd, who, file.Ino(q.Ino), q.Access); err != nil {
				return err
			}
		}
		in, err := data.Inode(rd, file.Ino(q.Ino))
		if err == nil {
			out.Attr = attr(in)
		}
		return err
	})
	return out, err
}

// List reads a page of a directory.
func (s *Service) List(ctx context.Context, q *dcpb.DataListRequest) (*dcpb.DataListReply, error) {
	out := &dcpb.DataListReply{}
	var err error
	out.Grant, err = s.view(ctx, "readdir", q.Header, func(rd storage.Reader, _ *command.DataCaller, l *look) error {
		l.about(q.Ino)
		entries, err := data.List(rd, file.Ino(q.Ino), q.After, min(int(q.Limit), dc.MaxScanPage))
		for _, e := range entries {
			l.about(e.Inode.Ino)
			out.Entries = append(out.Entries, &dcpb.DataEntry{Name: e.Name, Attr: attr(e.Inode)})
		}
		return err
	})
	return out, err
}

// Readlink reads the target of a symbolic link.
func (s *Service) Readlink(ctx context.Context, q *dcpb.DataStatRequest) (*dcpb.DataReadlinkReply, error) {
	out := &dcpb.DataReadlinkReply{}
	var err error
	out.Grant, err = s.view(ctx, "readlink", q.Header, func(rd storage.Reader, _ *command.DataCaller, l *look) error {
		l.about(q.Ino)
		in, err := data.Inode(rd, file.Ino(q.Ino))
		if err != nil {
			return err
		}
		if in.Mode&file.TypeMask != file.Symlink {
			return dc.Errorf(dc.Invalid, "readlink", file.Ino(q.Ino).String(), "not a symbolic link")
		}
		out.Target = in.Target
		return nil
	})
	return out, err
}

// GetXattr reads an extended attribute.
func (s *Service) GetXattr(ctx context.Context, q *dcpb.DataXattrRequest) (out *dcpb.DataXattrReply, err error) {
	_, err = s.view(ctx, "getxattr", q.Header, func(rd storage.Reader, who *command.DataCaller, l *look) error {
		l.about(q.Ino)
		v, err := data.Xattr(rd, who, file.Ino(q.Ino), q.Name)
		out = &dcpb.DataXattrReply{Value: v}
		return err
	})
	return out, err
}

// ListXattr lists the names of extended attributes.
func (s *Service) ListXattr(ctx context.Context, q *dcpb.DataStatRequest) (out *dcpb.DataListXattrReply, err error) {
	_, err = s.view(ctx, "listxattr", q.Header, func(rd storage.Reader, who *command.DataCaller, l *look) error {
		l.about(q.Ino)
		names, err := data.Xattrs(rd, who, file.Ino(q.Ino))
		out = &dcpb.DataListXattrReply{Names: names}
		return err
	})
	return out, err
}

// Space tells what the files take.
func (s *Service) Space(ctx context.Context, q *dcpb.DataSpaceRequest) (out *dcpb.DataSpaceReply, err error) {
	_, err = s.view(ctx, "statfs", q.Header, func(rd storage.Reader, _ *command.DataCaller, _ *look) error {
		inodes, used := data.Usage(rd, 0)
		out = &dcpb.DataSpaceReply{Used: used, Inodes: inodes}
		return nil
	})
	return out, err
}

// Make creates a file of any type.
func (s *Service) Make(ctx context.Context, q *dcpb.DataMakeRequest) (*dcpb.DataAttrReply, error) {
	open := s.openFiles(dc.GroupID(q.Header.GetGroup()))
	if q.Nameless {
		if q.Session == 0 {
			return nil, dc.Errorf(dc.Invalid, "create", "", "a file without a name must be open")
		}
		open.making(1) // until its inode is known, and noted as open, no file without a name is purged
		defer open.making(-1)
	}
	out, err := s.change(ctx, "create", q.Header, q.Now, &command.DataCommand{Op: &command.DataCommand_Make{Make: &command.DataMake{
		Parent: q.Parent, Name: q.Name, Mode: q.Mode, Rdev: q.Rdev, Target: q.Target, Exclusive: q.Exclusive,
		FullMode: q.FullMode, Nameless: q.Nameless, Linkable: q.Linkable,
	}}})
	if err == nil && q.Session != 0 {
		open.opened(q.Session, q.Opened, file.Ino(out.Attr.Ino))
	}
	return out, err
}

// Link gives a file another name.
func (s *Service) Link(ctx context.Context, q *dcpb.DataLinkRequest) (*dcpb.DataAttrReply, error) {
	return s.change(ctx, "link", q.Header, q.Now, &command.DataCommand{Op: &command.DataCommand_Link{Link: &command.DataLink{
		Ino: q.Ino, Parent: q.Parent, Name: q.Name,
	}}})
}

// Unlink removes a name, or an empty directory.
func (s *Service) Unlink(ctx context.Context, q *dcpb.DataUnlinkRequest) (*dcpb.DataAttrReply, error) {
	return s.change(ctx, "unlink", q.Header, q.Now, &command.DataCommand{Op: &command.DataCommand_Unlink{Unlink: &command.DataUnlink{
		Parent: q.Parent, Name: q.Name, Dir: q.Dir,
	}}})
}

// Rename moves a name.
func (s *Service) Rename(ctx context.Context, q *dcpb.DataRenameRequest) (*dcpb.DataAttrReply, error) {
	return s.change(ctx, "rename", q.Header, q.Now, &command.DataCommand{Op: &command.DataCommand_Rename{Rename: &command.DataRename{
		Parent: q.Parent, Name: q.Name, NewParent: q.NewParent, NewName: q.NewName, Flags: q.Flags,
	}}})
}

// SetXattr sets an extended attribute.
func (s *Service) SetXattr(ctx context.Context, q *dcpb.DataSetXattrRequest) (*dcpb.DataAttrReply, error) {
	return s.change(ctx, "setxattr", q.Header, q.Header.GetIssuedMs()*1e6, &command.DataCommand{Op: &command.DataCommand_SetXattr{SetXattr: &command.DataSetXattr{
		Ino: q.Ino, Name: q.Name, Value: q.Value, Flags: q.Flags,
	}}})
}

// RemoveXattr removes an extended attribute.
func (s *Service) RemoveXattr(ctx context.Context, q *dcpb.DataXattrRequest) (*dcpb.DataAttrReply, error) {
	return s.change(ctx, "removexattr", q.Header, q.Header.GetIssuedMs()*1e6, &command.DataCommand{Op: &command.DataCommand_RemoveXattr{RemoveXattr: &command.DataRemoveXattr{
		Ino: q.Ino, Name: q.Name,
	}}})
}
