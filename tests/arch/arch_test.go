// Package arch holds the house to its plan: which room may import which, who owns which library, and where time and
// randomness are banned. Run it with -count=1: it asks the go command, which the test cache does not see.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "missingos/"

type pkg struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
}

// packages lists the module's packages as the go command sees them.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,GoFiles", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// in tells whether package path p is room or inside it.
func in(p, room string) bool {
	p = strings.TrimPrefix(p, module)
	return p == room || strings.HasPrefix(p, room+"/")
}

func inAny(p string, rooms ...string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool { return in(p, r) })
}

// libraries says which rooms may use which third-party library (or part of the standard one), and why.
var libraries = []struct {
	prefix string
	rooms  []string
	why    string
}{
	{"github.com/hanwen/go-fuse", []string{"fs", "tests"}, "the mount is fs' alone: other rooms speak in names and errors, not in FUSE"},
	{"github.com/hashicorp/raft", []string{"consensus", "tests"}, "agreement is consensus' alone: other rooms see commands and leaders"},
	{"github.com/dgraph-io/badger", []string{"storage", "tests"}, "the disk is storage's alone"},
	{"google.golang.org/grpc", []string{"srv", "consensus/transport", "ctl", "tests"}, "transport lives in srv and consensus/transport"},
	{"github.com/prometheus", []string{"srv/node"}, "metrics are gathered where everything is wired"},
	{"os/exec", []string{"scheduler/driver", "scheduler/agent", "ctl", "fs", "tests"}, "processes are run by task drivers and the local cluster (fs: fusermount3 only)"},
}

// forbidden says which room must not import which.
var forbidden = []struct{ room, target, why string }{
	{"storage", "consensus", "storage has never heard of Raft: srv/node introduces them"},
	{"storage", "scheduler", "storage sees commands, not plans"},
	{"storage", "srv/dcpb", "replicated state must not depend on the wire contract"},
	{"storage", "fs", "state knows nothing of its face"},
	{"consensus", "storage", "consensus sees commands as bytes: srv/node introduces them"},
	{"consensus", "scheduler", "consensus sees commands as bytes"},
	{"consensus", "fs", "agreement knows nothing of files"},
	{"scheduler", "consensus", "the scheduler sees a snapshot interface of its own"},
	{"scheduler", "storage", "the scheduler sees a snapshot interface of its own"},
	{"scheduler", "fs", "the scheduler knows nothing of the mount"},
	{"fs", "consensus", "rooms of the tree reach services only through interfaces that srv/client satisfies"},
	{"fs", "storage", "rooms of the tree reach services only through interfaces that srv/client satisfies"},
	{"fs", "srv/dcpb", "rooms of the tree import no transport"},
	{"fs", "srv/rpc", "rooms of the tree import no transport"},
	{"srv/client", "consensus", "the client speaks to services only"},
	{"srv/client", "fs", "the client does not know who calls it"},
}

func TestLibrariesStayInTheirRooms(t *testing.T) {
	for _, p := range packages(t) {
		for _, lib := range libraries {
			if inAny(p.ImportPath, lib.rooms...) {
				continue
			}
			for _, imp := range p.Imports {
				if imp == lib.prefix || strings.HasPrefix(imp, lib.prefix+"/") {
					t.Errorf("%s imports %s, which only %v may: %s", p.ImportPath, imp, lib.rooms, lib.why)
				}
			}
		}
	}
}

func TestRoomsImportOnlyDownwards(t *testing.T) {
	for _, p := range packages(t) {
		for _, rule := range forbidden {
			if !in(p.ImportPath, rule.room) {
				continue
			}
			for _, imp := range p.Imports {
				if strings.HasPrefix(imp, module) && in(imp, rule.target) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, rule.why)
				}
			}
		}
	}
}

func TestVocabularyImportsOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"srv/dc" {
			continue
		}
		for _, imp := range p.Imports {
			if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") || strings.HasPrefix(imp, module) {
				t.Errorf("srv/dc imports %s: everything stands on it, so it stands on nothing", imp)
			}
		}
	}
}

func TestNothingImportsCommandsOrTests(t *testing.T) {
	for _, p := range packages(t) {
		if in(p.ImportPath, "tests") {
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module) && inAny(imp, "cmd", "tests") {
				t.Errorf("%s imports %s: nothing imports cmd or tests", p.ImportPath, imp)
			}
		}
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	for _, p := range packages(t) {
		if in(p.ImportPath, "tests") || len(p.GoFiles) == 0 || strings.HasPrefix(p.ImportPath, module+"cmd/") {
			continue
		}
		if !slices.ContainsFunc(p.GoFiles, func(f string) bool { return hasPackageDoc(t, filepath.Join(p.Dir, f)) }) {
			t.Errorf("%s has no package comment: say what it is, its concepts, what it does not do (doc.go)", p.ImportPath)
		}
	}
}

func hasPackageDoc(t *testing.T, file string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f.Doc.Text() != ""
}

// pure are the packages whose results must be the same on every replica.
var pure = []string{"storage/machine", "storage/tuple", "storage/command", "scheduler"}

// impure are the parts of those that touch the world by design: they run tasks and queue work, they do not decide.
var impure = []string{"scheduler/agent", "scheduler/driver", "scheduler/broker"}

func TestStateMachinesAndSchedulerArePure(t *testing.T) {
	for _, p := range packages(t) {
		if !inAny(p.ImportPath, pure...) || inAny(p.ImportPath, impure...) {
			continue
		}
		for _, imp := range p.Imports {
			if imp == "math/rand" || imp == "math/rand/v2" || imp == "crypto/rand" || imp == "os" || imp == "net" {
				t.Errorf("%s imports %s: replicas that apply the same commands must reach the same state", p.ImportPath, imp)
			}
		}
		for _, f := range p.GoFiles {
			banClock(t, filepath.Join(p.Dir, f))
		}
	}
}

// banClock reports uses of time.Now and its kin.
func banClock(t *testing.T, file string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "NewTimer", "NewTicker", "Sleep"}, sel.Sel.Name) {
			t.Errorf("%s: time.%s in a pure package: time arrives inside the command", fset.Position(n.Pos()), sel.Sel.Name)
		}
		return true
	})
}

func TestTopLevelIsAsPlanned(t *testing.T) {
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"cmd", "fs", "srv", "ctl", "storage", "consensus", "scheduler", "docs", "tests", "bin",
		"go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "CONTRIBUTING.md", "buf.yaml", "buf.gen.yaml",
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || slices.Contains(allowed, e.Name()) {
			continue
		}
		t.Errorf("%s stands at the top level: the house has fixed rooms", e.Name())
	}
}

func TestNoVagueRoomNames(t *testing.T) {
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && d.Name() != "." && d.Name() != ".." {
			return fs.SkipDir
		}
		if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "manager"}, d.Name()) {
			t.Errorf("%s: a room is named for its one job", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
