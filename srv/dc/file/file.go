package file

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"missingos/srv/dc"
)

// An Ino is an inode number: a 12-bit slot above a 52-bit sequence. It is never reused, and always below 1<<63.
type Ino uint64

// Root is the root directory of /dc/data: slot 0, sequence 2 (1 is the mount's own root).
const Root Ino = 2

// SeqBits is how many bits of an inode number are its sequence.
const SeqBits = 52

// Slot is the part of the namespace that i was allocated in.
func (i Ino) Slot() uint16 { return uint16(i >> SeqBits) }

// String gives the decimal form that stat(1) shows.
func (i Ino) String() string { return fmt.Sprintf("inode %d", uint64(i)) }

// File types, as in st_mode.
const (
	TypeMask = 0o170000
	Fifo     = 0o010000
	CharDev  = 0o020000
	Dir      = 0o040000
	BlockDev = 0o060000
	Regular  = 0o100000
	Symlink  = 0o120000
	Socket   = 0o140000
)

// Attr is what stat(2) shows of an inode. Mode has the type bits. Times are Unix nanoseconds.
type Attr struct {
	Ino                 Ino
	Mode                uint32
	Nlink               uint32
	UID, GID            uint32
	Rdev                uint32
	Size                int64
	Allocated           int64 // bytes of data held, holes not counted
	Atime, Mtime, Ctime int64
	Btime               int64
	Parent              Ino    // of a directory
	Version             uint64 // grows with every change of content or size
	ACL                 bool   // it has an access control list, or a default one
	Xattrs              bool   // it has extended attributes
}

// IsDir tells a directory.
func (a *Attr) IsDir() bool { return a.Mode&TypeMask == Dir }

// IsRegular tells a regular file.
func (a *Attr) IsRegular() bool { return a.Mode&TypeMask == Regular }

// A Make creates a file. Mode has the type bits; Target is a symbolic link's.
type Make struct {
	Dir       Ino
	Name      string
	Mode      uint32
	Rdev      uint32
	Target    []byte
	Exclusive bool // fail with dc.Exists if the name is there, instead of giving the file that it names
	Open      bool // the maker has it open from then on
	// FullMode is the mode without the caller's umask (Mode has it applied): it counts where the directory has a default access control list. nil: Mode.
	FullMode *uint32
	// Nameless makes a regular file without a name (O_TMPFILE) in Dir's filesystem; Open must be set. Linkable allows to give it one.
	Nameless, Linkable bool
}

// A SetAttr is a chmod, chown, utimes or truncate; nil fields are left alone.
type SetAttr struct {
	Mode     *uint32 // permission bits
	UID, GID *uint32
	Size     *int64
	Atime    *int64
	Mtime    *int64
	// Now are times the caller left to the system ("touch"): any writer may set those, not only the owner.
	Now bool
	// Open says that the caller holds the file open for writing, so a truncate needs no permission.
	Open bool
}

// A BlockID names an immutable block for ever: the node that wrote it, how often that node's store had been opened by
// then, and a sequence within that.
type BlockID struct {
	Node uint32
	Boot uint32
	Seq  uint64
}

// BlockIDBytes is the length of a BlockID's binary form.
const BlockIDBytes = 16

// Append appends the binary form, which sorts as the fields do.
func (b BlockID) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, b.Node)
	dst = binary.BigEndian.AppendUint32(dst, b.Boot)
	return binary.BigEndian.AppendUint64(dst, b.Seq)
}

// Bytes gives the binary form.
func (b BlockID) Bytes() []byte { return b.Append(make([]byte, 0, BlockIDBytes)) }

// IsZero tells the name of no block.
func (b BlockID) IsZero() bool { return b == BlockID{} }

// Compare orders blocks as their binary forms sort.
func (b BlockID) Compare(c BlockID) int {
	return cmp.Or(cmp.Compare(b.Node, c.Node), cmp.Compare(b.Boot, c.Boot), cmp.Compare(b.Seq, c.Seq))
}

// String gives the hexadecimal form used in logs.
func (b BlockID) String() string { return hex.EncodeToString(b.Bytes()) }

// ParseBlockID reads the binary form.
func ParseBlockID(p []byte) (BlockID, error) {
	if len(p) != BlockIDBytes {
		return BlockID{}, dc.Errorf(dc.Invalid, "parse block id", "", "%d bytes, want %d", len(p), BlockIDBytes)
	}
	return BlockID{
		Node: binary.BigEndian.Uint32(p), Boot: binary.BigEndian.Uint32(p[4:]), Seq: binary.BigEndian.Uint64(p[8:]),
	}, nil
}

// A Location is a block and the nodes that hold it.
type Location struct {
	Block BlockID
	Bytes int // length of the block
	Nodes []dc.NodeID
}

// An Extent is a run of a file's bytes [Off, Off+Len) that lies in a block from BlockOff on.
type Extent struct {
	Off, Len int64
	Block    BlockID
	BlockOff int64
	Nodes    []dc.NodeID
}

// End is the offset after the extent's last byte.
func (e Extent) End() int64 { return e.Off + e.Len }

// Content is what a reader needs to find a file's bytes at one version: an extent's byte where there is one, else the inline run's, else zero.
// Extents are known for offsets in [From, To) only.
type Content struct {
	Attr      Attr
	InlineOff int64
	Inline    []byte
	Extents   []Extent // by offset, not overlapping
	From, To  int64
}

// A Piece of a write: file bytes [Off, Off+Len) are block bytes from BlockOff on. A zero Block makes a hole.
type Piece struct {
	Off, Len int64
	Block    BlockID
	BlockOff int64
}

// A Commit publishes written data, all at once.
type Commit struct {
	Ino    Ino
	Mtime  int64
	Blocks []Location
	Pieces []Piece
	// Inline, if not nil, is data of at most dc.InlineFileBytes for [InlineOff, ...) instead of pieces.
	InlineOff int64
	Inline    []byte
	// Fold, if not zero, is the version at which the file had an inline run that the first piece begins with: the FoldLen bytes of that range, as a
	// reader saw them, were copied into the block so that the run
	// can go. If the file is at another version by now, only the rest of the piece is taken.
	Fold    uint64
	FoldLen int64
	// Size, if larger than the file after the pieces, extends it.
	Size int64
}

// A Clone makes bytes [ToOff, ToOff+Len) of one file what bytes [FromOff, ...) of another are, sharing blocks.
type Clone struct {
	From, To       Ino
	FromOff, ToOff int64
	Len            int64
	Mtime          int64
}

// An Append adds data at the end of the file, wherever that is when the append takes effect.
type Append struct {
	Ino    Ino
	Mtime  int64
	Inline []byte // the data, or:
	Block  Location
	// Fold and FoldLen as in Commit: the block begins with FoldLen bytes of the inline run at the end of the file.
	Fold    uint64
	FoldLen int64
}

// An Entry is a name in a directory, with the attributes of what it names.
type Entry struct {
	Name string
	Attr Attr
}

// Space is what statfs shows.
type Space struct {
	Total, Free int64 // bytes
	Used        int64 // bytes of files
	Inodes      int64
}

// Limits of /dc/data.
const (
	MaxXattrBytes   = 64 * dc.KiB // one extended attribute's value
	MaxXattrsBytes  = 64 * dc.KiB // all names of one inode, as listxattr answers them
	MaxACLEntries   = 512         // entries of one access control list
	MaxLinks        = 65000       // hard links of a file, subdirectories of a directory
	MaxFileBytes    = 1 << 60     // a file's size
	MaxExtentsPage  = 1024        // extents an answer may hold
	ChecksumBytes   = 64 * dc.KiB // bytes under one checksum of a block
	MaxCommitPieces = 4096        // pieces of one commit

	// CommitWithin is how old a block may be when it is first referenced: a writer that was slower writes the data anew.
	CommitWithin = 5 * time.Minute
	// OrphanAge is how old a block that no file references must be before its node deletes it.
	OrphanAge = time.Hour
	// OpenGrace is how long a new leader waits for the nodes to say which files they have open before it purges unlinked ones.
	OpenGrace = 15 * time.Second
	// OpenReport is how often a node says which files it has open.
	OpenReport = 5 * time.Second
)
