// Package script runs shell sessions on the mounts of a real three-node cluster: three dcd processes on this machine, made by
// `dcctl local up`, used with nothing but a shell, as users do.
//
// Each testdata/*/*.txtar holds sessions as one would see them in a terminal (testscript's own commands are there, too):
//
//	session two-nodes
//	-- two-nodes --
//	$ echo 42 > $DC1/kv/$T/x
//	$ cat $DC2/kv/$T/x
//	42
//	$ cat $DC2/kv/$T/y
//	~ cat: .*: No such file or directory
//	[1]
//
// A line that begins with `$ ` is typed into one bash that lives as long as the session, and so are the lines `> ` that continue it; the lines after
// it are all that it prints, on both streams: literally, or as a regular expression after `~ `, or `...` for any lines;
// `[n]` is its exit status if that is not 0. DC1, DC2 and DC3 are the mounts; $T is a name that no other session uses;
// `eventually COMMAND` repeats a command until it succeeds, `xattr NAME FILE` prints an attribute; dcctl finds the cluster by itself.
//
// testdata/trees runs in parallel on the whole cluster; testdata/faults one by one, each free to kill and stop nodes: the
// cluster is made whole after it.
package script
