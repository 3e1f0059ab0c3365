//go:build long

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestEveryAcknowledgedWriteSurvives(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("DC_CHAOS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	length, trees := 2*time.Minute, []string{"kv", "lock", "topics", "data"}
	if s := os.Getenv("DC_CHAOS_TIME"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("DC_CHAOS_TREES"); s != "" {
		trees = strings.Fields(s)
	}
	t.Logf("DC_CHAOS_SEED=%d", seed)
	c := newCluster(t)
	prepare(t, c, trees)

	stop := startWriters(t, c, trees)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	nemesis(ctx, t, c, rand.New(rand.NewPCG(seed, 1)))
	c.healed(t, trees)
	l := stop()
	for _, tree := range trees {
		l.check(t, c, tree)
	}
	if slices.Contains(trees, "lock") {
		l.checkCounter(t, c)
	}
	for _, f := range l.Faults {
		t.Error(f)
	}
	for _, e := range slices.Sorted(maps.Keys(l.Errs)) {
		t.Logf("%6d times %s", l.Errs[e], e)
	}
}

// startWriters starts the writers' process; stop ends it and gives what they know.
func startWriters(t *testing.T, c *cluster, trees []string) (stop func() *ledger) {
	t.Helper()
	var mounts []string
	for n := 1; n <= nodes; n++ {
		mounts = append(mounts, c.mount(n))
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writersEnv+"="+strings.Join(mounts, ":")+"::"+strings.Join(trees, ":"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return func() *ledger {
		_ = in.Close()
		select {
		case err := <-ended:
			l := &ledger{}
			if err == nil {
				err = json.Unmarshal(out.Bytes(), l)
			}
			if err != nil {
				t.Fatalf("writers: %v\n%s", err, errs.String())
			}
			return l
		case <-time.After(time.Minute):
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			<-ended
			t.Fatalf("writers hang\n%s\n%s", errs.String(), c.state())
			return nil
		}
	}
}

// prepare makes the files and directories that the writers use.
func prepare(t *testing.T, c *cluster, trees []string) {
	t.Helper()
	for _, tree := range trees {
		dirs := []string{filepath.Join(c.mount(1), tree, "chaos")}
		if tree != "topics" {
			dirs = append(dirs, filepath.Join(dirs[0], "one"))
		}
		for _, dir := range dirs {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if tree == "lock" {
			if err := os.WriteFile(filepath.Join(dirs[0], "counter"), []byte(fmt.Sprintf("%020d\n", 0)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// nemesis breaks and mends until ctx ends. Mostly one node at a time is away, now and then two: then nothing can be written.
func nemesis(ctx context.Context, t *testing.T, c *cluster, r *rand.Rand) {
	begin := time.Now()
	do := func(verb string, node int) {
		out, err := c.dcctl("local", verb, strconv.Itoa(node))
		t.Logf("%6.1fs %s n%d", time.Since(begin).Seconds(), verb, node)
		if err != nil && ctx.Err() == nil {
			t.Errorf("local %s %d: %v\n%s\n%s", verb, node, err, out, c.state())
		}
	}
	for ctx.Err() == nil { // every round mends what it broke, also the last
		pause(ctx, time.Duration(1+r.IntN(5))*time.Second)
		victims := r.Perm(nodes)[:1]
		if r.IntN(5) == 0 {
			victims = r.Perm(nodes)[:2]
		}
		verbs := make([]string, len(victims))
		for i, v := range victims {
			verbs[i] = []string{"kill", "kill", "pause", "stop"}[r.IntN(4)]
			do(verbs[i], v+1)
		}
		away := time.Duration(500+r.IntN(4000)) * time.Millisecond
		if r.IntN(4) == 0 {
			away = 13 * time.Second // longer than a session lasts
		}
		pause(ctx, away)
		for i, v := range victims {
			do(map[string]string{"kill": "start", "stop": "start", "pause": "resume"}[verbs[i]], v+1)
		}
	}
}

// check compares what a tree holds with what its writers know.
func (l *ledger) check(t *testing.T, c *cluster, tree string) {
	t.Helper()
	var first map[string]int
	for n := 1; n <= nodes; n++ {
		ids, err := found(c.mount(n), tree)
		if err != nil {
			t.Errorf("%s on n%d: %v\n%s", tree, n, err, c.state())
			return
		}
		if first == nil {
			first = ids
		} else if !maps.Equal(first, ids) {
			t.Errorf("%s: n%d shows %d writes, n1 %d", tree, n, len(ids), len(first))
		}
	}
	acked, maybe, present, bad := 0, 0, 0, 0
	fault := func(format string, args ...any) {
		if bad++; bad <= 10 {
			t.Errorf(tree+": "+format, args...)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, o := range l.Writes[tree] {
		n := first[id]
		switch o {
		case acknowledged:
			if acked++; n != 1 {
				fault("%s was acknowledged and is there %d times", id, n)
			}
		case unknown:
			maybe++
			if present += n; n > 1 {
				fault("%s is there %d times", id, n)
			}
		case refused:
			if n > 0 {
				fault("%s was refused and is there %d times", id, n)
			}
		}
	}
	for id := range first {
		if _, ok := l.Writes[tree][strings.TrimPrefix(id, "empty ")]; !ok {
			fault("%q was never written", id)
		}
	}
	t.Logf("%-6s %6d acknowledged, all there once; %d unknown, %d of them there; longest time without an acknowledgement %v", tree, acked, maybe, present,
		l.Gap[tree].Round(time.Millisecond))
	if acked == 0 {
		t.Errorf("%s: nothing was acknowledged", tree)
	}
}

// checkCounter wants the counter at least at the acknowledged increments and at most at those and the unknown ones.
func (l *ledger) checkCounter(t *testing.T, c *cluster) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.mount(1), "lock", "chaos", "counter"))
	if err != nil {
		t.Error(err)
		return
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Error(err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("flock  %6d increments acknowledged, %d unknown, the counter is at %d; longest time without one %v", len(l.Numbers), l.Maybe, n, l.Gap["flock"].Round(time.Millisecond))
	if n < len(l.Numbers) || n > len(l.Numbers)+l.Maybe {
		t.Errorf("the counter is at %d after %d acknowledged and %d unknown increments", n, len(l.Numbers), l.Maybe)
	}
}
