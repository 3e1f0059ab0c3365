package storage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"missingos/srv/dc"
)

// sending is a sender that knows one stream only.
func sending(stream []byte) Fetch {
	return func(context.Context, Pull) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stream)), nil }
}

// senders are shards that a state is pulled from. The nth stream comes from the shard that pick says and breaks off after the bytes
// that it says, whole if they are negative.
type senders struct {
	t       *testing.T
	shards  []*Shard
	atLeast dc.Index
	pick    func(n int) (shard, cut int)

	pulls []Pull // that were asked for
	asked func() // is called before each, if set
	stale int    // and refused
	bytes int    // sent
}

func (s *senders) fetch(ctx context.Context, p Pull) (io.ReadCloser, error) {
	if s.asked != nil {
		s.asked()
	}
	n, cut := s.pick(len(s.pulls))
	s.pulls = append(s.pulls, p)
	h, err := s.shards[n].Hold(p.At, s.atLeast)
	if err != nil {
		s.stale++
		return nil, err
	}
	defer h.Release()
	var b bytes.Buffer
	if err := h.WriteSnapshot(ctx, p, &b); err != nil {
		s.t.Fatal(err)
	}
	if cut >= 0 {
		b.Truncate(min(cut, b.Len()))
	}
	s.bytes += b.Len()
	return io.NopCloser(&b), nil
}

// noisy makes entries whose values do not compress, so that streams are of many frames and large.
func noisy(n int, dice *rand.Rand) []Entry {
	var all []Entry
	for i := 1; i <= n; i++ {
		var b strings.Builder
		for b.Len() < 40_000 {
			fmt.Fprintf(&b, "%x", dice.Uint64())
		}
		all = append(all, entry(i, fmt.Sprintf("set k%d %s", dice.IntN(100), b.String()), "add n 1"))
	}
	return all
}

// applied makes a shard that has applied entries, in groups as the dice say.
func applied(t *testing.T, entries []Entry, dice *rand.Rand) *Shard {
	t.Helper()
	s := mustOpen(t, t.TempDir(), testConfig(t))
	t.Cleanup(func() { mustClose(t, s) })
	applyInGroups(s, entries, dice)
	return s
}

func applyInGroups(s *Shard, entries []Entry, dice *rand.Rand) {
	for len(entries) > 0 {
		n := min(1+dice.IntN(9), len(entries))
		s.Apply(entries[:n])
		entries = entries[n:]
	}
}

func TestAPullGoesOnAfterEachBreak(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 2))
	from := applied(t, noisy(130, dice), dice)
	whole := len(streamOf(t, from, SnapshotFormat))
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	s := &senders{t: t, shards: []*Shard{from}, pick: func(n int) (int, int) { return 0, 350_000 + n*50_000 }}
	var told []Receipt
	s.asked = func() {
		r, ok := to.Receiving()
		if !ok {
			t.Error("nothing tells that a snapshot is received")
		}
		told = append(told, r)
	}
	if err := to.Restore(t.Context(), 1, s.fetch); err != nil {
		t.Fatal(err)
	}
	if mustHash(t, to) != mustHash(t, from) || to.Mark() != from.Mark() || to.Durable() != from.Mark() {
		t.Errorf("restored %v, want %v", to.Mark(), from.Mark())
	}
	for i, r := range told[1:] {
		if r.Index != from.Mark().Index || r.Bytes <= told[i].Bytes || r.Whole {
			t.Errorf("before stream %d it was told to be at %+v", i+1, r)
		}
	}
	if r, ok := to.Receiving(); ok {
		t.Errorf("after the end: %+v", r)
	}
	if len(s.pulls) < 3 {
		t.Fatalf("only %d streams: the test is too small", len(s.pulls))
	}
	for i, p := range s.pulls[1:] {
		if p.At != from.Mark().Index || i > 0 && bytes.Compare(p.After, s.pulls[i].After) <= 0 {
			t.Errorf("stream %d went on at %d after %q", i+1, p.At, p.After)
		}
	}
	if most := whole + len(s.pulls)*(frameBytes+dc.KiB); s.bytes > most {
		t.Errorf("%d bytes were sent in %d streams for a state of %d", s.bytes, len(s.pulls), whole)
	}
	if _, err := os.Stat(filepath.Join(to.dir, incomingFile)); !os.IsNotExist(err) {
		t.Errorf("the rows are still there: %v", err)
	}
}

// What a replica that is wrong has received before is not used to make it right.
func TestAWrongReplicaTrustsNothingItHasReceived(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 7))
	from := applied(t, noisy(30, dice), dice)
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	to.Apply([]Entry{entry(1, "set old 1")})
	s := &senders{t: t, shards: []*Shard{from}, pick: func(n int) (int, int) { return 0, []int{500_000, 0, 0, 0, 0, 500_000, -1}[n] }}
	if err := to.Restore(t.Context(), 30, s.fetch); dc.KindOf(err) != dc.Unavailable {
		t.Fatal(err)
	}
	to.SetAside(filepath.Join(t.TempDir(), "aside"))
	if err := to.Restore(t.Context(), 30, s.fetch); err != nil || mustHash(t, to) != mustHash(t, from) {
		t.Fatal(err)
	}
	if first, next := s.pulls[5], s.pulls[6]; first.At != 0 || next.At == 0 {
		t.Errorf("it asked for %d, then for %d", first.At, next.At)
	}
}

// A sender that always begins anew and never gets to the end is given up.
func TestASenderThatBeginsAnewIsGivenUp(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 6))
	from := applied(t, noisy(30, dice), dice)
	for format := 1; format <= SnapshotFormat; format++ {
		to := mustOpen(t, t.TempDir(), testConfig(t))
		cut, streams := streamOf(t, from, format), 0
		cut = cut[:len(cut)*3/4]
		err := to.Restore(t.Context(), 1, func(context.Context, Pull) (io.ReadCloser, error) {
			streams++
			return io.NopCloser(bytes.NewReader(cut)), nil
		})
		if dc.KindOf(err) != dc.Unavailable || streams != 1+fetchTries || to.Applied() != 0 {
			t.Errorf("format %d: %d streams, %v", format, streams, err)
		}
		mustClose(t, to)
	}
}

func TestAnotherSenderGoesOnAtTheSameVersion(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 3))
	entries := noisy(150, dice)
	a, b := applied(t, entries, rand.New(rand.NewPCG(7, 7))), applied(t, entries, rand.New(rand.NewPCG(8, 8)))
	at128 := applied(t, entries[:128], dice)
	if err := b.Checkpoint(); err != nil { // which leaves the last common version
		t.Fatal(err)
	}
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	s := &senders{t: t, shards: []*Shard{a, b}, atLeast: 100, pick: func(n int) (int, int) { return n % 2, 300_000 }}
	if err := to.Restore(t.Context(), 100, s.fetch); err != nil {
		t.Fatal(err)
	}
	if to.Mark() != at128.Mark() || mustHash(t, to) != mustHash(t, at128) || to.Clock() != at128.Clock() {
		t.Errorf("restored %v, want %v", to.Mark(), at128.Mark())
	}
	if len(s.pulls) < 3 || s.stale > 0 {
		t.Errorf("%d streams, %d refused", len(s.pulls), s.stale)
	}
	// And it is a sender itself, of what it has got.
	h, err := to.Hold(128, 100)
	if err != nil {
		t.Fatal(err)
	}
	h.Release()
}

// A version that is between two groups of this replica, or that compaction may have touched, is refused: the pull begins anew.
func TestAVersionThatIsNotThereIsRefused(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 4))
	entries := noisy(150, dice)
	a, b := applied(t, entries, dice), mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, b)
	b.Apply(entries[:3])
	b.Apply(entries[3:130])
	b.Apply(entries[130:])
	for at, ok := range map[dc.Index]bool{2: false, 3: true, 100: false, 128: true, 140: false, 150: true, 151: false} {
		h, err := b.Hold(at, 0)
		if ok != (err == nil) || err != nil && dc.KindOf(err) != dc.Stale {
			t.Errorf("version %d: got %v", at, err)
		}
		if err == nil && h.Index != at {
			t.Errorf("version %d: got %d", at, h.Index)
		}
		if err == nil {
			h.Release()
		}
	}
	if err := b.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Hold(3, 0); dc.KindOf(err) != dc.Stale {
		t.Errorf("a version before the checkpoint: %v", err)
	}
	to := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, to)
	s := &senders{t: t, shards: []*Shard{a, b}, pick: func(n int) (int, int) {
		if n == 0 {
			return 0, 900_000 // at 150
		}
		return 1, -1
	}}
	b.Apply([]Entry{entry(151, "set later 1")})
	if err := b.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	for i := 152; i <= 200; i++ { // past the next common version
		b.Apply([]Entry{entry(i, "set later 1")})
	}
	if err := b.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := to.Restore(t.Context(), 100, s.fetch); err != nil {
		t.Fatal(err)
	}
	if mustHash(t, to) != mustHash(t, b) || s.stale != 1 {
		t.Errorf("restored %v; %d refused", to.Mark(), s.stale)
	}
}

// A crash at each step of Restore leaves the old state or the new, whole, and what had been received.
func TestCrashesAtEachStepOfRestore(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 5))
	from := applied(t, noisy(30, dice), dice)
	whole := len(streamOf(t, from, SnapshotFormat))
	type crash struct {
		step, dir string
		synced    int64 // of INCOMING
	}
	var crashes []crash
	var to *Shard
	synced, taken := int64(0), map[string]int{}
	cfg := testConfig(t)
	cfg.hooks.step = func(name string) error {
		if to == nil {
			return nil
		}
		fi, err := os.Stat(filepath.Join(to.dir, incomingFile))
		if err == nil && name == "incoming synced" {
			synced = fi.Size()
		}
		if taken[name]++; taken[name] <= 3 { // of steps that come once a frame
			crashes = append(crashes, crash{name, clone(t, to.dir), synced})
		}
		return nil
	}
	s := mustOpen(t, t.TempDir(), cfg)
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set old 1")})
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	before, after := mustHash(t, s), mustHash(t, from)
	to = s
	send := &senders{t: t, shards: []*Shard{from}, pick: func(n int) (int, int) { return 0, []int{500_000, -1}[min(n, 1)] }}
	if err := to.Restore(t.Context(), 30, send.fetch); err != nil {
		t.Fatal(err)
	}
	crashes = append(crashes, crash{"done", clone(t, to.dir), 0})
	to = nil
	seen := map[string]int{}
	resent := map[string]int{}
	for _, c := range crashes {
		seen[c.step]++
		for _, power := range []bool{false, true} {
			dir := clone(t, c.dir)
			cfg := testConfig(t)
			if power {
				cfg.BootID = "boot-2"
				tear(t, filepath.Join(dir, incomingFile), c.synced, dice)
			}
			s := mustOpen(t, dir, cfg)
			want := before
			if isNew := slices.Contains([]string{"renamed CURRENT", "incoming removed", "done"}, c.step); isNew {
				want = after
			}
			if got := mustHash(t, s); got != want {
				t.Errorf("crash at %q, power cut %v: applied %d", c.step, power, s.Applied())
			}
			again := &senders{t: t, shards: []*Shard{from}, pick: func(int) (int, int) { return 0, -1 }}
			if err := s.Restore(t.Context(), 30, again.fetch); err != nil || mustHash(t, s) != after {
				t.Errorf("restore after a crash at %q, power cut %v: %v", c.step, power, err)
			}
			resent[fmt.Sprint(c.step, power)] = again.bytes
			mustClose(t, s)
		}
	}
	for _, step := range []string{
		"incoming cleared", "incoming written", "incoming synced", "generation made", "rows written", "rows loaded", "generation closed",
		"generation synced", "written CHECKPOINT.tmp", "renamed CHECKPOINT", "generation opened", "written CURRENT.tmp", "renamed CURRENT", "incoming removed",
	} {
		if seen[step] == 0 {
			t.Errorf("no crash at %q", step)
		}
		if strings.HasPrefix(step, "generation") && (resent[step+"false"] > 0 || resent[step+"true"] > 0) {
			t.Errorf("after a crash at %q %d of %d bytes were sent again", step, resent[step+"true"], whole)
		}
	}
}

// tear leaves of a file what a power cut may: what was synced, and of the rest a part, the end of which is rubbish.
func tear(t *testing.T, path string, synced int64, dice *rand.Rand) {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	synced = min(synced, int64(len(b)))
	tail := b[synced:]
	if len(tail) == 0 {
		return
	}
	tail = tail[:dice.IntN(len(tail)+1)]
	for i := dice.IntN(len(tail) + 1); i < len(tail); i++ {
		tail[i] = 0
	}
	if err := os.WriteFile(path, append(b[:synced:synced], tail...), 0o600); err != nil {
		t.Fatal(err)
	}
}
