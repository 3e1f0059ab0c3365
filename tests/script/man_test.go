package script

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var shellBlock = regexp.MustCompile("(?s)\n```sh\n(.*?)\n```\n")

// TestManualPages runs every shell block of docs/man, with /dc as the working directory, block after block, each in a bash of
// its own that ends at the first command that fails.
func TestManualPages(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real daemons")
	}
	c := up(t)
	pages, err := filepath.Glob("../../docs/man/dc*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal("no manual pages", err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			for _, block := range shellBlock.FindAllStringSubmatch(string(text), -1) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, "bash", "-eu", "-o", "pipefail", "-c", "cd "+c.mount(2)+"\n"+block[1])
				cmd.WaitDelay = time.Second
				cmd.Env = append(os.Environ(), "LC_ALL=C", "HOSTNAME=man", "PATH="+c.bin+":"+os.Getenv("PATH"), "DC_DIR="+c.dir, "DC_MOUNT="+c.mount(2))
				if out, err := cmd.CombinedOutput(); err != nil {
					why, _ := os.ReadFile(filepath.Join(c.mount(2), ".dc", "errors"))
					t.Fatalf("%v\n%s\nprinted\n%s\nrecent errors\n%.600s", err, block[1], out, why)
				}
			}
		})
	}
}
