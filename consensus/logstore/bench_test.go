package logstore

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// countFS counts fsyncs of files.
type countFS struct {
	FS
	syncs *atomic.Int64
}

type countFile struct {
	File
	syncs *atomic.Int64
}

func (c countFS) Open(name string) (File, error) {
	f, err := c.FS.Open(name)
	return countFile{f, c.syncs}, err
}

func (c countFile) Sync() error { c.syncs.Add(1); return c.File.Sync() }

// Every group appends one entry of 128 bytes at a time; an operation is an entry. The old log, one a group, stands beside it up to 50 groups: it
// takes 8 MiB a group.
func BenchmarkAppend(b *testing.B) {
	fatal := func(err error) { b.Error(err) }
	for _, groups := range []int{1, 50, 1000} {
		b.Run(fmt.Sprintf("log=shared/groups=%d", groups), func(b *testing.B) {
			fs, err := OpenFS(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			var syncs atomic.Int64
			s, err := OpenShared(SharedConfig{FS: countFS{fs, &syncs}, Fatal: fatal})
			if err != nil {
				b.Fatal(err)
			}
			stores := make([]Store, groups)
			for i := range stores {
				stores[i] = s.Open(dc.GroupID(i + 1))
			}
			appendAll(b, stores)
			b.ReportMetric(float64(syncs.Load())/b.Elapsed().Seconds(), "fsyncs/s")
			if err := s.Close(); err != nil {
				b.Error(err)
			}
		})
		if groups > 50 {
			continue
		}
		b.Run(fmt.Sprintf("log=old/groups=%d", groups), func(b *testing.B) {
			dir := b.TempDir()
			stores := make([]Store, groups)
			for i := range stores {
				var err error
				if stores[i], err = openOld(Config{Dir: filepath.Join(dir, fmt.Sprint(i)), Fatal: fatal}); err != nil {
					b.Fatal(err)
				}
			}
			appendAll(b, stores)
			for _, s := range stores {
				if err := s.Close(); err != nil {
					b.Error(err)
				}
			}
		})
	}
}

func appendAll(b *testing.B, stores []Store) {
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Go(func() {
			for i := uint64(1); left.Add(-1) >= 0; i++ {
				if err := s.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, 128)}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
