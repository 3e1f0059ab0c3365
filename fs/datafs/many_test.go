package datafs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"missingos/srv/data/datatest"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/machine/data"
)

func TestALogOfManyAppendsHasFewExtents(t *testing.T) {
	c := datatest.New(t, 3)
	a, b := mount(t, c, 1), mount(t, c, 2)
	const lines = 1200
	var want strings.Builder
	for i := range lines {
		dir := a
		if i%5 == 0 {
			dir = b
		}
		f, err := os.OpenFile(dir+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		check(t, err)
		line := fmt.Sprintf("line %d of a log that grows by one line at a time, from two nodes\n", i)
		_, err = f.WriteString(line)
		check(t, err)
		check(t, f.Close())
		want.WriteString(line)
	}
	wantContent(t, b+"/log", want.String())
	st, err := os.Stat(a + "/log")
	check(t, err)
	_ = c.Meta.Local(func(rd storage.Reader) error {
		in, err := data.Lookup(rd, nil, file.Root, []byte("log"))
		check(t, err)
		if most := st.Size() / 4096; int64(in.Extents) > most {
			t.Errorf("%d bytes in %d extents, want at most %d", st.Size(), in.Extents, most)
		}
		return nil
	})
}

func TestALargeDirectoryIsListedWholeAndInPlaces(t *testing.T) {
	c := datatest.New(t, 1)
	a := mount(t, c, 1)
	dir := a + "/large"
	check(t, os.Mkdir(dir, 0o755))
	const files = 2100 // more than four pages
	for i := range files {
		check(t, os.WriteFile(fmt.Sprintf("%s/f%05d", dir, i), nil, 0o644))
	}
	if names := list(t, dir); len(names) != files || names[0] != "f00000" || names[files-1] != "f02099" {
		t.Fatalf("%d names", len(names))
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 64<<10)
	var first, again []string
	n, err := unix.ReadDirent(fd, buf)
	check(t, err)
	_, _, first = unix.ParseDirent(buf[:n], -1, nil)
	at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	check(t, err)
	for n > 0 {
		n, err = unix.ReadDirent(fd, buf)
		check(t, err)
		_, _, first = unix.ParseDirent(buf[:n], -1, first)
	}
	if len(first) != files {
		t.Fatalf("%d names from start to end", len(first))
	}
	_, err = unix.Seek(fd, at, unix.SEEK_SET) // back, as seekdir(3) goes
	check(t, err)
	for n = 1; n > 0; {
		n, err = unix.ReadDirent(fd, buf)
		check(t, err)
		_, _, again = unix.ParseDirent(buf[:n], -1, again)
	}
	if strings.Join(again, " ") != strings.Join(first[files-len(again):], " ") || len(again) == 0 || len(again) == files {
		t.Fatalf("from the place in the middle: %d names", len(again))
	}
	check(t, os.RemoveAll(dir)) // lists and removes by turns
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatal(err)
	}
}
