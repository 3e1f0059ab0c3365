package consensus

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"missingos/srv/dc"
)

// An Entry is one committed Raft entry: a batch of commands under the leader's hybrid clock.
type Entry struct {
	Index    dc.Index
	Term     dc.Term
	Clock    int64 // Unix milliseconds, never going back from entry to entry
	Commands [][]byte
}

// A Result is what the state machine answered to one command.
type Result struct {
	Body []byte
	Err  error
}

// A StateMachine is the replicated state behind a group. Calls of Apply and Restore never overlap.
type StateMachine interface {
	// Apply applies entries in order and returns the results by entry and slot. Entries at or below Applied are skipped (nil results).
	// A failure that is not a command's result ends the process inside Apply.
	Apply(entries []Entry) [][]Result
	// Applied is the index of the last applied entry, surviving restarts as far as the disk does.
	Applied() dc.Index
	// Clock is the clock of the last applied entry, Unix milliseconds.
	Clock() int64
	// Checkpoint returns when everything applied before the call is on stable storage.
	Checkpoint() error
	// Queued tells, while Apply is under way, whether it waits for a turn that other groups of this node have, which is no sign of a disk that hangs.
	// It does not block.
	Queued() bool
	// Hold keeps the state after entry at, or, for zero, one that has all of entry atLeast, for a replica that pulls it, while later entries are
	// applied. The caller releases it, before or after the state machine is closed. dc.Stale means that the state after entry at is not here: other
	// replicas may have it.
	Hold(at, atLeast dc.Index) (HeldState, error)
	// Restore replaces the whole state by one of entry atLeast or a later one, which it reads from the streams that fetch opens. It keeps what
	// it has got when it fails, also over restarts, and asks for the rest only when it is called again. A crash at any step leaves the old or
	// the new state, never a mixture.
	Restore(ctx context.Context, atLeast dc.Index, fetch Fetch) error
}

// A Pull says what a replica that pulls wants of a held state.
type Pull struct {
	Format uint32   // the highest it reads; zero is a replica of the version before there were formats
	At     dc.Index // it has a part of the state after this entry; zero if it has nothing
	After  []byte   // where that part ends, in the state machine's words
}

// Fetch opens a stream of what is wanted, from whichever replica has it. dc.Stale means that none has the state of p.At any more: then Restore
// begins anew.
type Fetch func(ctx context.Context, p Pull) (io.ReadCloser, error)

// A HeldState is a state machine's state after some entry.
type HeldState interface {
	// Index is that entry's.
	Index() dc.Index
	// WriteSnapshot streams what p wants of it, in the highest format that both replicas know. It blocks as w does.
	WriteSnapshot(ctx context.Context, p Pull, w io.Writer) error
	// Release lets it go. A stream that is being written fails then, or ends whole.
	Release()
}

// entryVersion is the first byte of every entry; a replica that meets another one stops.
const entryVersion = 1

// encodeEntry lays out version, clock, count and the commands with their lengths.
func encodeEntry(clock int64, commands [][]byte) []byte {
	size := 1 + 8 + binary.MaxVarintLen32
	for _, c := range commands {
		size += binary.MaxVarintLen32 + len(c)
	}
	b := make([]byte, 0, size)
	b = append(b, entryVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(clock))
	b = binary.AppendUvarint(b, uint64(len(commands)))
	for _, c := range commands {
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	return b
}

// decodeEntry is encodeEntry's inverse; the commands alias b.
func decodeEntry(b []byte) (clock int64, commands [][]byte, err error) {
	if len(b) < 10 || b[0] != entryVersion {
		return 0, nil, fmt.Errorf("entry of %d bytes has an unknown version", len(b))
	}
	clock = int64(binary.BigEndian.Uint64(b[1:]))
	b = b[9:]
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)) {
		return 0, nil, fmt.Errorf("entry has a broken count")
	}
	b = b[k:]
	commands = make([][]byte, n)
	for i := range commands {
		size, k := binary.Uvarint(b)
		if k <= 0 || size > uint64(len(b)-k) {
			return 0, nil, fmt.Errorf("command %d of %d is cut off", i, n)
		}
		commands[i], b = b[k:k+int(size)], b[k+int(size):]
	}
	return clock, commands, nil
}
