package meta

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/meta"
)

// CreateDescriptor names a new table or topic, owned by the caller.
func (s *Service) CreateDescriptor(ctx context.Context, req *dcpb.MetaCreateDescriptorRequest) (*dcpb.MetaDescriptorReply, error) {
	t, p, err := s.admit("create "+req.Kind, req.Header, false)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{Op: &command.MetaCommand_CreateDescriptor{
		CreateDescriptor: &command.MetaCreateDescriptor{Kind: req.Kind, Name: req.Name, Uid: p.UID, Gid: p.GID, Mode: req.Mode},
	}})
	if err != nil {
		return nil, err
	}
	return &dcpb.MetaDescriptorReply{Descriptor_: descriptor(res.Descriptor_)}, nil
}

// Descriptor finds a table or topic by name.
func (s *Service) Descriptor(ctx context.Context, req *dcpb.MetaDescriptorRequest) (*dcpb.MetaDescriptorReply, error) {
	t, _, err := s.admit("find "+req.Kind, req.Header, false)
	if err != nil {
		return nil, err
	}
	reply := &dcpb.MetaDescriptorReply{}
	err = t.replica.View(ctx, func(r storage.Reader) error {
		d, ok := meta.Named(r, req.Kind, req.Name)
		if !ok {
			return dc.Errorf(dc.NotFound, "find "+req.Kind, req.Name, "there is no %s of that name", req.Kind)
		}
		reply.Descriptor_ = descriptor(d)
		return nil
	})
	return reply, err
}

// ListDescriptors lists a page in name order.
func (s *Service) ListDescriptors(ctx context.Context, req *dcpb.MetaListDescriptorsRequest) (*dcpb.MetaListDescriptorsReply, error) {
	t, _, err := s.admit("list "+req.Kind, req.Header, false)
	if err != nil {
		return nil, err
	}
	limit := int(req.Limit)
	if limit <= 0 || limit > dc.MaxScanPage {
		limit = dc.MaxScanPage
	}
	reply := &dcpb.MetaListDescriptorsReply{}
	err = t.replica.View(ctx, func(r storage.Reader) error {
		reply.Descriptors = nil
		for _, d := range meta.List(r, req.Kind, req.After, limit) {
			reply.Descriptors = append(reply.Descriptors, descriptor(d))
		}
		return nil
	})
	return reply, err
}

// MarkDropping frees a descriptor's name; for its owner and root.
func (s *Service) MarkDropping(ctx context.Context, req *dcpb.MetaDropRequest) (*dcpb.MetaDropReply, error) {
	return s.drop(ctx, req, &command.MetaCommand{Op: &command.MetaCommand_MarkDropping{
		MarkDropping: &command.MetaMarkDropping{Kind: req.Kind, Id: req.Id},
	}})
}

// RemoveDescriptor forgets a descriptor whose rows are gone; for its owner and root. It may be repeated.
func (s *Service) RemoveDescriptor(ctx context.Context, req *dcpb.MetaDropRequest) (*dcpb.MetaDropReply, error) {
	return s.drop(ctx, req, &command.MetaCommand{Op: &command.MetaCommand_RemoveDescriptor{
		RemoveDescriptor: &command.MetaRemoveDescriptor{Kind: req.Kind, Id: req.Id},
	}})
}

func (s *Service) drop(ctx context.Context, req *dcpb.MetaDropRequest, c *command.MetaCommand) (*dcpb.MetaDropReply, error) {
	t, p, err := s.admit("drop "+req.Kind, req.Header, false)
	if err != nil {
		return nil, err
	}
	err = t.replica.View(ctx, func(r storage.Reader) error {
		if d, ok := meta.Descriptor(r, req.Kind, req.Id); ok && p.UID != 0 && p.UID != d.Uid {
			return dc.Errorf(dc.Denied, "drop "+req.Kind, d.Name, "it belongs to uid %d", d.Uid)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, err = t.do(ctx, rpc.RequestID(req.Header), c)
	return &dcpb.MetaDropReply{}, err
}

func descriptor(d *command.MetaDescriptor) *dcpb.MetaDescriptor {
	return &dcpb.MetaDescriptor{
		Kind: d.Kind, Name: d.Name, Id: d.Id, Group: d.Group, Dropping: d.Dropping, CreatedMs: d.CreatedMs, Uid: d.Uid, Gid: d.Gid, Mode: d.Mode,
	}
}
