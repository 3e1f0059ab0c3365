package dc

import "time"

// Limits. Each has a line in docs/limits.md and a clear error when it is reached.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30

	MaxNameBytes = 255  // one path element (POSIX NAME_MAX)
	MaxPathBytes = 4096 // a path (POSIX PATH_MAX)
	// MaxFenceLockBytes is the path of a lock below /dc/lock, of those whose tokens can condition writes.
	MaxFenceLockBytes = 1024
	// MaxFences is the locks whose tokens a group remembers, because holders wrote to it under them in the last two DedupeWindow.
	MaxFences     = 100_000
	MaxValueBytes = 1 * MiB // a kv row, and a topic message
	MaxKeyBytes   = 4 * KiB // a kv key
	MaxLockBytes  = 64 * KiB
	MaxSpecBytes  = 256 * KiB
	MaxCtlBytes   = 64 * KiB // one write of a control file

	InlineFileBytes = 8 * KiB // files up to this size live in their inode
	MaxBlockBytes   = 4 * MiB // an immutable file block

	MaxCommandBytes  = 2 * MiB   // one replicated command
	MaxBatchBytes    = 256 * KiB // commands gathered into one raft entry (a larger single command stands alone)
	MaxBatchCommands = 1024

	MaxKVTxnItems = 512  // conditions, and actions, of one transaction
	MaxKVLoadRows = 4096 // rows put by one command
	MaxKVMove     = 1024 // rows that the rename of a directory moves
	MaxKVRanges   = 1024 // ranges of a table

	MaxLockFiles      = 1_000_000 // files and directories of /dc/lock
	MaxLockHolders    = 4096      // shared holders of one lock
	MaxLockWaiters    = 1024      // waiters for one lock
	MaxLockTxnOps     = 128       // conditions, or operations, of one transaction
	MaxLockTxnBytes   = 256 * KiB // values written by one transaction or moved by one rename
	MaxLockTxnReads   = 1024      // files read by one transaction
	MaxLockMove       = 128       // files that the rename of a directory moves
	MaxLockHistory    = 100_000   // revisions kept for watchers; older ones are compacted
	MaxLockHistoryB   = 256 * MiB // and their bytes
	MaxLockWatchers   = 4096      // watches open on one node
	MaxLockDelay      = 60 * time.Second
	LockDelay         = time.Second // the default: how long a lock lost with its session stays free
	LockSessionMargin = time.Second // a node stops trusting its session this long before the leader may end it

	MaxKVTTL = 100 * 365 * 24 * time.Hour // longer is for ever

	MaxTopicGroups     = 1000             // consumer groups of one topic
	MaxTopicInFlight   = 20_000           // messages of one consumer group delivered and not acknowledged; more are held back
	MaxTopicTake       = 256              // messages taken or settled by one request
	MaxTopicWaiters    = 4096             // readers of consumer groups and followers of logs that one leader lets wait
	TopicVisibility    = 30 * time.Second // the default: how long a reader may take before a message goes to another
	MaxTopicVisibility = 12 * time.Hour
	MaxTopicRetention  = 100 * 365 * 24 * time.Hour // longer is for ever

	MaxTaskOutput  = 16 * MiB // kept of each of a task's two outputs: the latest
	MaxTaskOutputs = 4 * GiB  // kept of all ended tasks on a node; the oldest go first
	TaskOutputAge  = 7 * 24 * time.Hour
	JobLeaseMargin = time.Second // a node's tasks are dead this long before its lease ends by its own clock

	MaxInFlightPerClient = 4096 // mutations a client may have unanswered
	MaxScanPage          = 1024 // entries a paged answer may hold
	MaxRecentErrors      = 256  // kept at /dc/.dc/errors
	MaxBlockedReads      = 4096 // reads of streams and waits for locks that block in one mount; one more answers EAGAIN

	// OpTimeout bounds one operation of the mount: with no quorum it fails with EIO after this.
	OpTimeout = 10 * time.Second
	// DedupeWindow is how long a command may be retried under its request id, in log time.
	DedupeWindow = 5 * time.Minute
	// SessionTTL is how long a silent node keeps its locks, unless it asked for another time, and its tasks.
	SessionTTL    = 10 * time.Second
	MinSessionTTL = 3 * time.Second // of which the node itself trusts in LockSessionMargin less
	MaxSessionTTL = 5 * time.Minute
)
