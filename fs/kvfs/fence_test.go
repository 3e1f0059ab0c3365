package kvfs_test

import "testing"

// The ledger compares here; whether a lock is held under a token that it has not seen, only srv/node asks.
func TestAnOlderHoldersRowsAreRefused(t *testing.T) {
	dir, _ := mount(t)
	const hold = `mkdir -p t; exec 5<>t/row 6<>t/.dc/load; for d in 5 6; do setfattr -n user.dc.fence -v 5@l /dev/fd/$d; done
`
	const next = `(exec 7<>t/row; setfattr -n user.dc.fence -v 7@l /dev/fd/7; echo new >&7)
`
	const stale = "write error: Stale file handle"
	for _, test := range []struct{ name, script, want string }{
		{"the holder writes", hold + `echo old >&5; printf 'a\t1\n' >&6; cat <&6; cat t/row`, "1\nold"},
		{
			"the next one, and the first one late", hold + next + `echo late >&5; printf 'b\t1\n' >&6; cat t/row; ls t`,
			"bash: line 4: echo: " + stale + "\nbash: line 4: printf: " + stale + "\nnew\na\nrow",
		},
		{"appending", `exec 5>>t/row; setfattr -n user.dc.fence -v 5@l /dev/fd/5; echo late >&5; cat t/row`, "bash: line 2: echo: " + stale + "\nnew"},
		{"replacing", `exec 5>t/other; setfattr -n user.dc.fence -v 5@l /dev/fd/5; echo late >&5; wc -c < t/other; rm t/other`, "bash: line 2: echo: " + stale + "\n0"},
		{"truncating", hold + `python3 -c 'import os
try: os.ftruncate(5, 1)
except OSError as e: print(e.strerror)'; cat t/row`, "Stale file handle\nnew"},
		{"a transaction", `exec 3<>t/.dc/txn; echo '{"fence":"5@l","do":[{"put":"b","value":"1"}]}' >&3; cat <&3; ls t`, "cat: -: Stale file handle\na\nrow"},
		{"a transaction of the holder", `exec 3<>t/.dc/txn; echo '{"fence":"7@l","do":[{"put":"a","value":"2"}]}' >&3; jq .succeeded <&3; cat t/a`, "true\n2"},
		{"a bad fence", `exec 3<>t/.dc/txn; echo '{"fence":"l","do":[{"put":"b","value":"1"}]}' >&3; cat <&3; ls t`, "cat: -: Invalid argument\na\nrow"},
		{"another lock", `exec 5>t/row; setfattr -n user.dc.fence -v 1@m /dev/fd/5; echo other >&5; cat t/row`, "other"},
		{
			"a refused write leaves nothing behind", hold + `echo late >&5; setfattr -n user.dc.fence -v 8@l /dev/fd/5; echo now >&5; cat t/row`,
			"bash: line 3: echo: " + stale + "\nnow\nr",
		},
		{"without the condition", hold + `setfattr -x user.dc.fence /dev/fd/5; echo free. >&5; cat t/row`, "free."},
		{
			"only of a descriptor that can write", `exec 5<t/row; setfattr -n user.dc.fence -v 8@l /dev/fd/5 2>&1 | grep -o 'Invalid argument'; head -n 1 ../.dc/errors | grep -o 'open it first'`,
			"Invalid argument\nopen it first",
		},
	} {
		t.Run(test.name, func(t *testing.T) { expect(t, dir, test.script, test.want) })
	}
}
