package script

import (
	"os"
	"strings"
	"testing"
)

func TestSessions(t *testing.T) {
	for _, c := range []struct{ name, text, says string }{
		{"fine", "$ echo hi\nhi\n\n$ false\n[1]\n# a remark\n$ printf 'a\\nb\\nc\\n'\n...\n~ [bc]\n", ""},
		{"one shell", "$ x=1\n$ exec 3> f; echo two >&3\n$ cat f; echo $x\ntwo\n1\n", ""},
		{"continued", "$ for i in 1 2; do\n> echo $i\n> done\n1\n2\n", ""},
		{"both streams", "$ ls /none\n~ ls: .*/none.*: No such file or directory\n[2]\n", ""},
		{"eventually", "$ (sleep 0.2; touch there) &\n$ eventually test -e there\n", ""},
		{"eventually gives up", "$ PATIENCE=1 eventually false\n", "still not after 1 s: false"},
		{"other output", "$ echo hi\nho\n", "line 1: $ echo hi"},
		{"other status", "$ false\n", "got (status 1)"},
		{"too much output", "$ echo a; echo b\na\n", "    b"},
		{"too little output", "$ true\na\n", "(nothing)"},
		{"the shell ends", "$ exit 3\n$ echo more\n", "ended the session"},
		{"no final newline", "$ printf hi\nhi\n", ""},
		{"background output does not hold it up", "$ sleep 100 &\n$ echo on\non\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := play(t.TempDir(), os.Environ(), c.text, func() {})
			switch {
			case c.says == "" && err != nil:
				t.Error(err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
		})
	}
}
