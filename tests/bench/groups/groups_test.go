//go:build long

package main

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if served, err := serveIfMember(); served {
		if err != nil {
			fatal(err)
		}
		return
	}
	os.Exit(m.Run())
}

// TestThousandGroups: all groups find leaders, new and after a restart, and no write is lost, refused or counted twice. How long that takes and
// what it costs is printed; it depends on the machine and on what else it does.
func TestThousandGroups(t *testing.T) {
	f, err := measure(t.Context(), config{groups: 1000, settle: 50 * time.Second, watch: 20 * time.Second, patience: 3 * time.Minute, shelveAfter: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%+v\n", f)
}
