package kvfs_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestShell(t *testing.T) {
	dir, _ := mount(t)
	if err := os.Mkdir(filepath.Join(dir, "t"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, script, want string }{
		{"put and get", "echo 42 > a; cat a; wc -c < a", "42\n3\n"},
		{"a shorter value replaces a longer one", "echo long value > a; echo x > a; cat a", "x\n"},
		{"append", "echo 1 > l; echo 2 >> l; cat l; rm l", "1\n2\n"},
		{"noclobber", "set -C; echo y > a && echo made; echo z > b && echo made", "bash: line 2: a: cannot overwrite existing file\nmade\n"},
		{"several writes", "seq 30000 > s; seq 30000 | cmp - s && echo same; wc -l < s", "same\n30000\n"},
		{"touch makes an empty row", "touch e; stat -c %s e; rm e", "0\n"},
		{"truncate", "printf hello > r; truncate -s 3 r; cat r; truncate -s 5 r; od -An -c r; rm r", "hel   h   e   l  \\0  \\0\n"},
		{"patch in the middle", "printf hello > r; printf E | dd of=r bs=1 seek=1 conv=notrunc status=none; cat r; rm r", "hEllo"},
		{"rename replaces", "echo new > tmp; mv tmp a; cat a; ls", "new\na\nb\ns\n"},
		{"wide rows", "mkdir d; echo 7 > d/age; ls d; cat d/age; rmdir d; rm -r d; ls -d d", "age\n7\nrmdir: failed to remove 'd': Directory not empty\nls: cannot access 'd': No such file or directory\n"},
		{"limits", "head -c 1048576 /dev/zero > big && stat -c %s big; printf x >> big; rm big", "1048576\nbash: line 2: printf: write error: File too large\n"},
		{"awkward names", "echo p > '100%'; echo q > 'a%2Fb'; ls; cat 'a%2Fb'; rm '100%' 'a%2Fb'", "100%\na\na%2Fb\nb\ns\nq\n"},
		{"a control file", "ls -A | grep -c dc; echo nonsense > .dc/ctl", "0\nbash: line 2: echo: write error: Invalid argument\n"},
		{"a control file's error", "echo nonsense > .dc/ctl; head -n1 ../../.dc/errors | grep -o 'ctl kv.*command'", "bash: line 2: echo: write error: Invalid argument\nctl kv/t/.dc/ctl: there is no command\n"},
		{"load and scan", "rm -r *; printf 'k1\\tv1\\n{\"key\":\"k2\",\"value\":\"v2\"}\\nk3\\tv3' > .dc/load; exec 3<>.dc/scan; echo format=tsv from=k2 >&3; cat <&3", "k2\tv2\nk3\tv3\n"},
		{"load counts", "exec 3<>.dc/load; printf 'a\\t1\\nb\\t2\\n' >&3; cat <&3", "2\n"},
		{
			"load names the line", "printf 'a\\t1\\nbroken\\nc\\t3\\n' > .dc/load; head -n1 ../../.dc/errors | grep -o 'line 2.*'; ls",
			"bash: line 2: printf: write error: Invalid argument\nline 2 (all before are loaded) t: neither {\"key\":..,\"value\":..} nor KEY<TAB>VALUE: \"broken\"\na\nb\nk1\nk2\nk3\n",
		},
		{"txn", `exec 3<>.dc/txn; echo '{"if":[{"key":"n","absent":true}],"do":[{"add":"n","by":2}]}' >&3; cat <&3; cat n`, "{\"succeeded\":true,\"revision\":REV,\"values\":{\"n\":\"2\"}}\n2"},
		{"a bad txn", `echo '{"do":[{"putt":"n"}]}' | tee .dc/txn > /dev/null`, "tee: .dc/txn: Invalid argument\n"},
		{"stat", "grep -E '^(rows|table|ranges)' .dc/stat; jq .rows .dc/stat.json", "table t\nrows 6\nranges 1\n6\n"},
		{"one range", "cut -d' ' -f1-3 .dc/ranges", "- - g5\n"},
		{
			"split", `echo split k2 > .dc/ctl; printf 'split "a b"\nsplit k2\n' > .dc/ctl; sed 's/ g5 n1//' .dc/ranges; grep ranges .dc/stat; ls`,
			"bash: line 2: printf: write error: File exists\n- \"a b\" 2\n\"a b\" k2 6\nk2 - 10\nranges 3\na\nb\nk1\nk2\nk3\nn\n",
		},
		{
			"a txn over two ranges", `exec 3<>.dc/txn; echo '{"do":[{"put":"a","value":"1"},{"put":"n","value":"2"}]}' >&3; cat <&3; head -n1 ../../.dc/errors | grep -o 'kv.txn.*is in another'`,
			"cat: -: Invalid cross-device link\nkv.txn t/n: a transaction lies in one range of its table, and a is in another\n",
		},
		{"rename over two ranges", "mv a z; cat z; mv z a; exec 3<>.dc/scan; echo 'format=tsv keys-only' >&3; cat <&3", "1a\nb\nk1\nk2\nk3\nn\n"},
		{"a column is no boundary", "echo split a/b > .dc/ctl; head -n1 ../../.dc/errors | grep -o 'kv.split.*'", "bash: line 2: echo: write error: Invalid argument\nkv.split t/a/b: a row and its columns stay in one range: split at a row, like a (usage: split KEY)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-c", "cd "+dir+"/t\n"+tt.script)
			cmd.Env = append(os.Environ(), "LC_ALL=C")
			out, _ := cmd.CombinedOutput()
			got := string(out)
			if i := strings.Index(got, `"revision":`); i >= 0 {
				j := i + len(`"revision":`)
				got = got[:j] + "REV" + strings.TrimLeft(got[j:], "0123456789")
			}
			if got != tt.want {
				t.Errorf("%s\n got %q\nwant %q", tt.script, got, tt.want)
			}
		})
	}
}

func TestManyRowsAreListedOnceEach(t *testing.T) {
	root, _ := mount(t)
	dir := filepath.Join(root, "t")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	for i := range 5000 {
		rows.WriteString(strings.Repeat("k", i%7) + string(rune('a'+i%26)) + strings.Repeat("0", 5) + time.Duration(i).String() + "\tv\n")
	}
	if err := os.WriteFile(filepath.Join(dir, ".dc/load"), []byte(rows.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 5000 {
		t.Errorf("%d names, want 5000", len(names))
	}
}
