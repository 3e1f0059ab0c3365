package topic

import (
	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// A GroupInfo is a consumer group as it stands.
type GroupInfo struct {
	*command.TopicGroup
	Offset uint64 // the first message not acknowledged (or dead)
	Lag    uint64 // messages not acknowledged
	Ready  bool   // there is a message to take
}

// Group reads a consumer group; dc.NotFound if it or its topic is not there.
func Group(rd storage.Reader, op string, topic uint64, name string) (GroupInfo, error) {
	st, g, err := group(rd, op, topic, name)
	if err != nil {
		return GroupInfo{}, err
	}
	catchUp(st, g)
	info := GroupInfo{TopicGroup: g, Offset: g.Cursor, Lag: st.NextOffset - g.Cursor + g.InFlight}
	info.Ready = g.Returned > 0 || g.Cursor < st.NextOffset && g.InFlight < dc.MaxTopicInFlight
	prefix := key(rowFlight, topic, g.Epoch)
	for k := range rd.Scan(storage.Span{Start: prefix, End: tuple.PrefixEnd(prefix), KeysOnly: true}) {
		info.Offset = last(k)
		break
	}
	return info, nil
}

// Groups gives up to limit names of a topic's consumer groups, in order, strictly after a name.
func Groups(rd storage.Reader, topic uint64, after string, limit int) (names []string) {
	start := groupKey(topic, after)
	if after != "" {
		start = append(start, 0)
	}
	prefix := key(rowGroup, topic)
	for k := range rd.Scan(storage.Span{Start: start, End: tuple.PrefixEnd(prefix), KeysOnly: true}) {
		if len(names) == limit {
			break
		}
		names = append(names, string(k[len(prefix):]))
	}
	return names
}

// Flights yields the leased messages of a consumer group.
func Flights(rd storage.Reader, topic, epoch uint64, yield func(offset uint64, f *command.TopicFlight) bool) {
	prefix := key(rowFlight, topic, epoch)
	for k, v := range rd.Scan(storage.Span{Start: prefix, End: tuple.PrefixEnd(prefix)}) {
		f := &command.TopicFlight{}
		decode(k, v, f)
		if f.Lease != 0 && !yield(last(k), f) {
			return
		}
	}
}

// Leases yields every leased message of every consumer group, for a new leader that must set their deadlines.
func Leases(rd storage.Reader, yield func(Leased) bool) {
	for k, v := range rd.Scan(storage.Span{Start: []byte{rowGroup}, End: []byte{rowGroup + 1}}) {
		topic, rest, _ := tuple.TakeUint(k[1:])
		name := string(rest)
		g := &command.TopicGroup{}
		decode(k, v, g)
		more := true
		Flights(rd, topic, g.Epoch, func(offset uint64, f *command.TopicFlight) bool {
			more = yield(Leased{Topic: topic, Group: name, Epoch: g.Epoch, Offset: offset, Lease: f.Lease, VisibilityMs: g.VisibilityMs})
			return more
		})
		if !more {
			return
		}
	}
}
