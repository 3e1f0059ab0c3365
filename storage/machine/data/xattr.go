package data

import (
	"bytes"
	"strings"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/command"
)

// Flags of setxattr(2).
const (
	XattrCreate  = 1
	XattrReplace = 2
)

const xattrCapability = "security.capability" // what an executable may do as root would, capabilities(7)

// checkXattr tells whether who may use an attribute of in: user.* belongs to files and directories and follows their mode,
// trusted.* is root's, security.* is read by all and set by root, other namespaces have no meaning here. Access control lists do not come here.
func checkXattr(op string, in *command.DataInode, who *command.DataCaller, name []byte, want uint32) error {
	if len(name) > dc.MaxNameBytes {
		return dc.Errorf(dc.Range, op, string(name[:32])+"...", "an attribute name of %d bytes, the limit is %d", len(name), dc.MaxNameBytes)
	}
	space, rest, _ := strings.Cut(string(name), ".")
	switch {
	case rest == "":
		return dc.Errorf(dc.Invalid, op, string(name), "an attribute is called user.NAME or trusted.NAME")
	case space == "trusted":
		if who.GetUid() == 0 {
			return nil
		}
		if want == WantRead {
			return dc.Errorf(dc.NoAttr, op, string(name), "")
		}
		return dc.Errorf(dc.NotOwner, op, string(name), "trusted attributes are root's")
	case space == "security":
		if want == WantRead || who.GetUid() == 0 {
			return nil
		}
		return dc.Errorf(dc.NotOwner, op, string(name), "security attributes are set by root")
	case space != "user":
		return dc.Errorf(dc.Unsupported, op, string(name), "only user.* and trusted.* attributes are kept")
	case !isDir(in) && !isRegular(in):
		if want == WantRead {
			return dc.Errorf(dc.NoAttr, op, string(name), "")
		}
		return dc.Errorf(dc.NotOwner, op, string(name), "only files and directories have user attributes")
	case want == WantWrite && isDir(in) && in.Mode&modeSticky != 0 && !owns(in, who):
		return dc.Errorf(dc.NotOwner, op, string(name), "the directory is sticky and another's")
	}
	return need(op, in, who, want, "use its attributes")
}

func (o *operation) setXattr(c *command.DataSetXattr) (*command.DataResult, error) {
	const op = "setxattr"
	in, ok := loadInode(o.tx, file.Ino(c.Ino))
	if !ok {
		return nil, stale(op, file.Ino(c.Ino))
	}
	if isACL(c.Name) && o.version >= 2 {
		return o.setACL(in, c)
	}
	if err := o.mayXattr(op, in, c.Name); err != nil {
		return nil, err
	}
	k := xattrKey(inoOf(in), c.Name)
	_, exists := o.tx.Get(k)
	added := len(c.Name) + 1
	switch {
	case c.Flags == XattrCreate && exists:
		return nil, dc.Errorf(dc.Exists, op, string(c.Name), "")
	case c.Flags == XattrReplace && !exists:
		return nil, dc.Errorf(dc.NoAttr, op, string(c.Name), "")
	case len(c.Value) > file.MaxXattrBytes:
		return nil, dc.Errorf(dc.Range, op, string(c.Name), "a value of %d bytes exceeds the limit of %d", len(c.Value), file.MaxXattrBytes)
	case !exists && int(in.XattrBytes)+added > file.MaxXattrsBytes:
		return nil, dc.Errorf(dc.NoSpace, op, string(c.Name), "the names of the file's attributes take %d bytes, the limit is %d", in.XattrBytes, file.MaxXattrsBytes)
	}
	if !exists {
		in.XattrBytes += uint32(added)
	}
	in.Capability = in.Capability || string(c.Name) == xattrCapability
	o.tx.Set(k, c.Value)
	in.Ctime = o.now
	o.put(in)
	return answer(in), nil
}

func (o *operation) removeXattr(c *command.DataRemoveXattr) (*command.DataResult, error) {
	const op = "removexattr"
	in, ok := loadInode(o.tx, file.Ino(c.Ino))
	if !ok {
		return nil, stale(op, file.Ino(c.Ino))
	}
	if isACL(c.Name) && o.version >= 2 {
		return o.removeACL(in, c.Name)
	}
	if err := o.mayXattr(op, in, c.Name); err != nil {
		return nil, err
	}
	k := xattrKey(inoOf(in), c.Name)
	if _, exists := o.tx.Get(k); !exists {
		return nil, dc.Errorf(dc.NoAttr, op, string(c.Name), "")
	}
	o.dropXattr(in, c.Name)
	in.Ctime = o.now
	o.put(in)
	return answer(in), nil
}

// dropXattr removes an attribute that in has. The caller stores in.
func (o *operation) dropXattr(in *command.DataInode, name []byte) {
	o.tx.Delete(xattrKey(inoOf(in), name))
	in.XattrBytes -= uint32(len(name) + 1)
	in.Capability = in.Capability && string(name) != xattrCapability
}

// mayXattr tells whether the caller may change an attribute. Commands of version 1 know fewer namespaces.
func (o *operation) mayXattr(op string, in *command.DataInode, name []byte) error {
	if o.version < 2 && len(name) <= dc.MaxNameBytes && bytes.HasPrefix(name, []byte("security.")) && len(name) > len("security.") {
		return dc.Errorf(dc.Unsupported, op, string(name), "only user.* and trusted.* attributes are kept")
	}
	return checkXattr(op, in, o.who, name, WantWrite)
}
