package job

import (
	"google.golang.org/protobuf/proto"

	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// Rows by first byte:
//
//	j<name>               JobRecord
//	i<job>                the name
//	t<job><task>          JobTask, from its first placement on
//	f<job>                the job has tasks that were never placed
//	w<job><task>          the task waits to be placed again; not before the time in the row
//	a<node><job><task>    the task is on the node
//	n<node>               JobNode
//	v<job><number>        JobEvent
//	s                     JobState
const (
	rowJob   = 'j'
	rowID    = 'i'
	rowTask  = 't'
	rowFresh = 'f'
	rowWait  = 'w'
	rowOn    = 'a'
	rowNode  = 'n'
	rowEvent = 'v'
)

var stateKey = []byte{'s'}

func jobKey(name string) []byte { return tuple.AppendString([]byte{rowJob}, name) }

func key(row byte, numbers ...uint64) []byte {
	b := []byte{row}
	for _, n := range numbers {
		b = tuple.AppendUint(b, n)
	}
	return b
}

func under(prefix []byte) storage.Span {
	return storage.Span{Start: prefix, End: tuple.PrefixEnd(prefix)}
}

// last reads the numbers at the end of a key that key made.
func last(k []byte, n int) uint64 {
	v, _, ok := tuple.TakeUint(k[len(k)-8*n:])
	if !ok {
		panic("job: a row's key does not decode")
	}
	return v
}

func load[M proto.Message](r storage.Reader, k []byte, m M) (M, bool) {
	value, ok := r.Get(k)
	if ok {
		decode(value, m)
	}
	return m, ok
}

func decode(value []byte, m proto.Message) {
	if err := proto.Unmarshal(value, m); err != nil {
		panic("job: record does not decode: " + err.Error())
	}
}

func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("job: record does not encode: " + err.Error())
	}
	return b
}

// Ended tells whether a job of that phase has no task left to run.
func Ended(p command.JobPhase) bool {
	return p == command.JobPhase_JOB_PHASE_SUCCEEDED || p == command.JobPhase_JOB_PHASE_FAILED || p == command.JobPhase_JOB_PHASE_STOPPED
}
