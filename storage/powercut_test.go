package storage

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"missingos/srv/dc"
)

// A disk knows what of a shard's memtable logs has been synced, and makes clones as a power cut leaves them.
type disk struct {
	synced map[string][]byte // content at the last fsync, by file name
}

// sync is syncLogs that remembers.
func (d *disk) sync(path string) error {
	logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		if err := syncPath(name); err != nil && !os.IsNotExist(err) {
			return err
		}
		if content, err := os.ReadFile(name); err == nil {
			d.synced[filepath.Base(name)] = content
		}
	}
	return syncPath(path)
}

// cut copies the directory and drops unsynced pages of the logs: none, some or all, file by file, as the dice say. Everything else
// Badger has synced itself.
func (d *disk) cut(t testing.TB, dir string, dice *rand.Rand) string {
	to := clone(t, dir)
	logs, err := filepath.Glob(filepath.Join(to, "*", "*.mem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range logs {
		now, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		old := d.synced[filepath.Base(name)]
		after := make([]byte, len(now))
		copy(after, old)
		switch dice.IntN(4) {
		case 0: // nothing unsynced reached the disk
			if old == nil {
				after = after[:dice.IntN(2)*len(after)] // not even the length
			}
		case 1:
			copy(after, now)
		default:
			for at := 0; at < len(now); at += 4096 {
				if end := min(at+4096, len(now)); dice.IntN(2) == 0 {
					copy(after[at:end], now[at:end])
				}
			}
		}
		if err := writeSparse(name, after); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// history makes n entries that overwrite, count, delete and write large values.
func history(n int, dice *rand.Rand) []Entry {
	var all []Entry
	for i := 1; i <= n; i++ {
		lines := []string{fmt.Sprintf("add n%d 1", dice.IntN(5)), fmt.Sprintf("big k%d %d", dice.IntN(30), dice.IntN(60_000))}
		switch dice.IntN(6) {
		case 0:
			lines = append(lines, fmt.Sprintf("big large%d %d", dice.IntN(3), dice.IntN(1_000_000)))
		case 1:
			lines = append(lines, fmt.Sprintf("clear k%d", dice.IntN(10)))
		case 2:
			lines = append(lines, fmt.Sprintf("del large%d", dice.IntN(3)))
		}
		all = append(all, entry(i, lines...))
	}
	return all
}

// surviveCuts applies a history with checkpoints and power cuts, replaying after each from the checkpoint, and tells whether the
// state is always what it should be.
func surviveCuts(t *testing.T, seed uint64, syncLogs func(*disk) func(string) error) (err error) {
	dice := rand.New(rand.NewPCG(seed, 1))
	entries := history(150, dice)
	want := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, want)

	boot := 1
	open := func(dir string) (*Shard, *disk, error) {
		cfg := testConfig(t)
		d := &disk{synced: map[string][]byte{}}
		cfg.BootID = fmt.Sprint("boot-", boot)
		cfg.ShelveAfter = time.Hour
		cfg.hooks.syncLogs = syncLogs(d)
		s, err := Open(dir, toy{}, cfg)
		return s, d, err
	}
	s, d, err := open(t.TempDir())
	if err != nil {
		return err
	}
	defer func() { mustClose(t, s) }()
	for at := 0; at < len(entries); {
		n := min(1+dice.IntN(8), len(entries)-at)
		s.Apply(entries[at : at+n])
		want.Apply(entries[at : at+n])
		at += n
		switch dice.IntN(9) {
		case 0, 1:
			if err := s.Checkpoint(); err != nil {
				return err
			}
		case 2:
			s.mu.Lock()
			s.used = false
			s.mu.Unlock()
			s.shelve()
		case 3:
			durable := s.Durable()
			if dice.IntN(3) > 0 {
				boot++ // else the process is killed, and may be killed after a power cut
			}
			dir := ""
			if killed := boot == bootOf(s); killed {
				dir = clone(t, s.dir)
			} else {
				dir = d.cut(t, s.dir, dice)
			}
			mustClose(t, s)
			synced := d.synced
			if s, d, err = open(dir); err != nil {
				s = mustOpen(t, t.TempDir(), testConfig(t))
				return err
			}
			d.synced = synced
			if s.Applied() < durable.Index {
				return fmt.Errorf("applied %d, checkpoint %d", s.Applied(), durable.Index)
			}
			replay := entries[s.Applied():at]
			for len(replay) > 0 { // in other groups than the first time
				k := min(1+dice.IntN(5), len(replay))
				s.Apply(replay[:k])
				replay = replay[k:]
			}
			if mustHash(t, s) != mustHash(t, want) {
				return fmt.Errorf("the state differs after the cut at entry %d (checkpoint %d, boot %d)", at, durable.Index, boot)
			}
		}
	}
	if mustHash(t, s) != mustHash(t, want) {
		return fmt.Errorf("the state differs at the end")
	}
	return nil
}

func bootOf(s *Shard) (boot int) {
	_, _ = fmt.Sscanf(s.cfg.BootID, "boot-%d", &boot)
	return boot
}

func TestPowerCutsLoseNothingCheckpointed(t *testing.T) {
	for seed := range uint64(4) {
		if err := surviveCuts(t, seed, func(d *disk) func(string) error { return d.sync }); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

// The mutation: a checkpoint that leaves the logs unsynced must be noticed by the test above.
func TestPowerCutTestNoticesAMissingSync(t *testing.T) {
	for seed := range uint64(6) {
		err := surviveCuts(t, seed, func(*disk) func(string) error { return func(string) error { return nil } })
		if err != nil {
			t.Log("noticed:", err)
			return
		}
	}
	t.Error("power cuts without synced logs went unnoticed")
}

// A value in chunks that a group wrote before the cut, and that no group after the cut shows, leaves nothing.
func TestReplayInOtherGroupsLeavesNoChunks(t *testing.T) {
	cfg := testConfig(t)
	cfg.MemTableBytes = 8 * dc.MiB // a group may hold more than a chunk
	entries := []Entry{entry(1, "set a 1"), entry(2, "big k 300000"), entry(3, "set k small")}
	s := mustOpen(t, t.TempDir(), cfg)
	s.Apply(entries[:1])
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	s.Apply(entries[1:2])
	dir := clone(t, s.dir)
	s.Apply(entries[2:])
	want := mustHash(t, s)
	mustClose(t, s)
	cfg.BootID = "boot-2"
	s = mustOpen(t, dir, cfg)
	defer mustClose(t, s)
	if s.Applied() != 1 {
		t.Fatalf("applied %d", s.Applied())
	}
	s.Apply(entries[1:])
	if mustHash(t, s) != want {
		t.Error("the state differs")
	}
}

func TestEmptyLogsOfAPowerCutAreTakenAway(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	dir := clone(t, s.dir)
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*", pattern))
		if len(files) == 0 {
			t.Fatalf("no %s", pattern)
		}
		for _, f := range files {
			if err := os.Truncate(f, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	cfg := testConfig(t)
	cfg.BootID = "boot-2"
	cut := mustOpen(t, dir, cfg)
	defer mustClose(t, cut)
	cut.Apply([]Entry{entry(1, "set a 1")})
	if value(t, cut, "a") != "1" {
		t.Error("the shard does not work")
	}
}

func TestLostCheckpointIsReported(t *testing.T) {
	s := mustOpen(t, t.TempDir(), testConfig(t))
	defer mustClose(t, s)
	s.Apply([]Entry{entry(1, "set a 1")})
	dir := clone(t, s.dir)
	path := filepath.Join(dir, filepath.Base(s.gen.path))
	if err := writeCheckpoint(path, Mark{9, 1}, nil, "boot-0"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, toy{}, testConfig(t)); dc.KindOf(err) != dc.Corrupt {
		t.Errorf("got %v", err)
	}
}
