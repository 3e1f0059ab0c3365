package data_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"missingos/srv/data/datatest"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// leased has node n stat a file until it does so from memory, and checks that it does.
func leased(t *testing.T, c *datatest.Cluster, n dc.NodeID, ino file.Ino) {
	t.Helper()
	wait(t, "a lease", func() bool {
		if _, err := c.Client(n).Stat(as(t, n), ino, 0); err != nil {
			t.Fatal(err)
		}
		c.Deafen(n, true) // an answer now comes from memory
		defer c.Deafen(n, false)
		ctx, cancel := context.WithTimeout(as(t, n), time.Millisecond)
		defer cancel()
		_, err := c.Client(n).Stat(ctx, ino, 0)
		return err == nil
	})
}

func mode(t *testing.T, c *datatest.Cluster, n dc.NodeID, ino file.Ino, m uint32) {
	t.Helper()
	if _, err := c.Client(n).SetAttr(as(t, n), ino, file.SetAttr{Mode: &m}); err != nil {
		t.Fatal(err)
	}
}

func TestAnswersFromMemoryAreNeverOld(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	for i := range 20 {
		leased(t, c, 2, a.Ino)
		want := uint32(0o600 + i)
		mode(t, c, 1, a.Ino, want)
		if got, err := c.Client(2).Stat(as(t, 2), a.Ino, 0); err != nil || got.Mode&0o777 != want {
			t.Fatalf("mode %o, %v; want %o", got.Mode, err, want)
		}
		if got, err := c.Client(1).Lookup(as(t, 1), file.Root, "f"); err != nil || got.Mode&0o777 != want {
			t.Fatalf("mode %o, %v; want %o", got.Mode, err, want)
		}
	}
}

// A node that hears nothing any more stops answering from memory before the leader tells anybody of a change.
func TestANodeThatIsCutOffStopsAnsweringInTime(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	leased(t, c, 2, a.Ino)
	c.Deafen(2, true)
	old := make(chan time.Time, 1) // when node 2 last answered with the old mode
	go func() {
		last := time.Now()
		for {
			ctx, cancel := context.WithTimeout(dc.WithPrincipal(context.Background(), dc.Principal{Node: 2}), time.Millisecond)
			got, err := c.Client(2).Stat(ctx, a.Ino, 0)
			now := time.Now()
			cancel()
			if err != nil {
				old <- last
				return
			}
			if got.Mode&0o777 == a.Mode&0o777 {
				last = now
			}
		}
	}()
	mode(t, c, 1, a.Ino, 0o400)
	changed := time.Now()
	if last := <-old; last.After(changed) {
		t.Errorf("answered from memory %s after the change", last.Sub(changed))
	}
	c.Deafen(2, false)
	if got, err := c.Client(2).Stat(as(t, 2), a.Ino, 0); err != nil || got.Mode&0o777 != 0o400 {
		t.Errorf("mode %o, %v", got.Mode, err)
	}
}

// What a node opens without asking the leader stays readable when another node removes it.
func TestAFileOpenedFromMemorySurvivesItsRemoval(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		c := datatest.New(t, 3, datatest.Grace(3*time.Second))
		a := create(t, c, "f")
		want := bytes.Repeat([]byte("precious"), 10_000)
		write(t, c, 1, a.Ino, 0, want)
		if _, err := c.Client(2).Open(as(t, 2), a.Ino, 4); err != nil { // to know the content
			t.Fatal(err)
		}
		c.Client(2).Closed(a.Ino)
		leased(t, c, 2, a.Ino)
		if err := c.Client(2).Report(as(t, 2)); err != nil { // the leader knows that nothing is open
			t.Fatal(err)
		}
		if deaf {
			leased(t, c, 2, a.Ino)
			c.Deafen(2, true)
		}
		ctx, cancel := context.WithTimeout(as(t, 2), time.Second)
		_, err := c.Client(2).Open(ctx, a.Ino, 4)
		cancel()
		if err != nil {
			if deaf {
				t.Skip("the lease ran out before the open")
			}
			t.Fatal(err)
		}
		if _, err := c.Client(1).Unlink(as(t, 1), file.Root, "f", false); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Client(1).Lookup(as(t, 1), file.Root, "f"); !errors.Is(err, dc.NotFound) {
			t.Fatal(err)
		}
		time.Sleep(2500 * time.Millisecond) // longer than what nobody has open is kept, shorter than Grace
		c.Deafen(2, false)
		if got, err := read(t, c, 2, a.Ino); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("deaf %v: %d bytes, %v", deaf, len(got), err)
		}
		c.Client(2).Closed(a.Ino)
	}
}

func TestLeasesEndWithTheTerm(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	leased(t, c, 2, a.Ino)
	for i := range 5 {
		c.Meta.Resign()
		c.Meta.Lead()
		want := uint32(0o600 + i)
		mode(t, c, 1, a.Ino, want)
		if got, err := c.Client(2).Stat(as(t, 2), a.Ino, 0); err != nil || got.Mode&0o777 != want {
			t.Fatalf("mode %o, %v; want %o", got.Mode, err, want)
		}
		leased(t, c, 2, a.Ino)
	}
}
