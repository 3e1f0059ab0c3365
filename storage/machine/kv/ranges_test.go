package kv

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/storagetest"
)

// drawn writes a table's ranges as text: id.epoch[start,end)rows.
func drawn(t *testing.T, run *storagetest.Run) string {
	t.Helper()
	var out []string
	err := run.View(func(r storage.Reader) error {
		for _, g := range Ranges(r, table) {
			out = append(out, fmt.Sprintf("%d.%d[%s,%s)%d", g.ID, g.Epoch, g.Start, g.End, g.Rows))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func splitAt(key string, rows uint64) *command.KVSplit {
	return &command.KVSplit{Table: table, Key: []byte(key), Rows: rows, Bytes: 2 * rows}
}

func TestSplitsDivideATable(t *testing.T) {
	run := storagetest.New(New())
	must(t, run, put("a", "1"), put("b", "1"), put("m/x", "1"), put("m/y", "1"), put("z", "1"))
	if got := drawn(t, run); got != "1.1[,)5" {
		t.Errorf("never split: %s", got)
	}
	before := revision(t, run)
	must(t, run, splitAt("m", 3))
	if got := drawn(t, run); got != "1.2[,m)2 2.2[m,)3" {
		t.Errorf("split once: %s", got)
	}
	must(t, run, splitAt("n", 1), splitAt("b", 1))
	if got := drawn(t, run); got != "1.3[,b)1 4.3[b,m)1 2.3[m,n)2 3.3[n,)1" {
		t.Errorf("split three times: %s", got)
	}
	if now := revision(t, run); now != before {
		t.Errorf("splits took revisions %d to %d", before, now)
	}
	must(t, run, put("a2", "1"), put("n", "1"), put("m/z", "1"), &command.KVRemove{Table: table, Key: []byte("b")})
	must(t, run, &command.KVRename{Table: table, From: []byte("m"), To: []byte("c")})
	if got := drawn(t, run); got != "1.3[,b)2 4.3[b,m)3 2.3[m,n)0 3.3[n,)2" {
		t.Errorf("after changes: %s", got)
	}
	if got := strings.Join(names(t, run, "", 2), " "); got != "a a2 c/ n z" {
		t.Errorf("a listing over four ranges, two at a time: %s", got)
	}
}

func revision(t *testing.T, run *storagetest.Run) (rev dc.Revision) {
	t.Helper()
	err := run.View(func(r storage.Reader) error {
		_, rev = Totals(r, table)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// What the leader counted may be off by what was written meanwhile: sums stay right, and nothing shows below zero.
func TestACountThatWasOffKeepsTheSum(t *testing.T) {
	run := storagetest.New(New())
	must(t, run, put("a", "1"), put("m", "1"), splitAt("m", 900))
	if got := drawn(t, run); got != "1.2[,m)0 2.2[m,)2" {
		t.Errorf("counted too many: %s", got)
	}
	must(t, run, &command.KVRemove{Table: table, Key: []byte("a")})
	if got := drawn(t, run); got != "1.2[,m)0 2.2[m,)2" {
		t.Errorf("below zero: %s", got)
	}
}

func TestSplitsRefused(t *testing.T) {
	run := storagetest.New(New())
	must(t, run, put("a", "1"), splitAt("m", 0))
	for name, test := range map[string]struct {
		key  string
		want dc.Kind
		text string
	}{
		"where a range begins":   {"m", dc.Exists, "begins there"},
		"between columns":        {"m/x", dc.Invalid, "at a row, like m"},
		"nowhere":                {"", dc.Invalid, "empty"},
		"a part that is no name": {strings.Repeat("x", 300), dc.NameTooLong, "255"},
	} {
		if _, err := do(run, splitAt(test.key, 0)); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %v with %q", name, err, test.want, test.text)
		}
	}
	if got := drawn(t, run); got != "1.2[,m)1 2.2[m,)0" {
		t.Errorf("after refusals: %s", got)
	}
	must(t, run, &command.KVDrop{Table: table})
	if _, err := do(run, splitAt("q", 0)); !errors.Is(err, dc.NotFound) {
		t.Errorf("of a dropped table: %v", err)
	}
	must(t, run, &command.KVSweep{Table: table})
	err := run.View(func(r storage.Reader) error {
		for k := range r.Scan(under(rangeKey(table, nil))) {
			t.Errorf("a swept table left %q", k)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestATransactionLiesInOneRange(t *testing.T) {
	run := storagetest.New(New())
	both := &command.KVTxn{
		Table: table, Conditions: []*command.KVCondition{{Key: []byte("a"), Absent: true}},
		Then: []*command.KVAction{{Key: []byte("z"), Act: &command.KVAction_Put{Put: []byte("1")}}},
	}
	must(t, run, both, splitAt("m", 1))
	if _, err := do(run, both); !errors.Is(err, dc.CrossDevice) || !strings.Contains(err.Error(), "kv.txn z: a transaction lies in one range of its table, and a is in another") {
		t.Errorf("over two ranges: %v", err)
	}
	one := &command.KVTxn{
		Table: table, Conditions: []*command.KVCondition{{Key: []byte("m/x"), Absent: true}},
		Then: []*command.KVAction{{Key: []byte("z"), Act: &command.KVAction_Put{Put: []byte("2")}}},
	}
	if res := must(t, run, one); !res.Succeeded {
		t.Error("in one range: it did not succeed")
	}
}
