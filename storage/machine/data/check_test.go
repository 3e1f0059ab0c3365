package data

import (
	"iter"
	"testing"

	"pgregory.net/rapid"

	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

// everything runs all checks over rd, a few rows at a time.
func everything(rd storage.Reader) (all []Finding) {
	for from := file.Ino(0); ; {
		next, _, found := CheckInodes(rd, 0, from, 3)
		all = append(all, found...)
		if from = next; next == 0 {
			break
		}
	}
	for from := []byte(nil); ; {
		next, _, found := CheckEntries(rd, 0, from, 3)
		all = append(all, found...)
		if from = next; next == nil {
			break
		}
	}
	for part := range 3 {
		_, found := CheckReferences(rd, 0, part, 3)
		all = append(all, found...)
	}
	return all
}

func TestChecksFindNothingInWhatCommandsMake(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if err := w.run.View(func(rd storage.Reader) error {
					if found := everything(rd); len(found) > 0 {
						t.Fatalf("found %v", found)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			},
			"make": w.make, "make2": w.make, "link": w.link, "unlink": w.unlink, "rename": w.rename, "rename2": w.rename,
			"write": w.write, "append": w.appendTo, "truncate": w.truncate, "purge": w.purge,
		})
	})
}

// A spoiled reader shows some rows as they should not be.
type spoiled struct {
	storage.Reader
	rows map[string][]byte // nil: not there
}

func (s spoiled) Get(k []byte) ([]byte, bool) {
	if v, ok := s.rows[string(k)]; ok {
		return v, v != nil
	}
	return s.Reader.Get(k)
}

func (s spoiled) Scan(span storage.Span) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		for k, v := range s.Reader.Scan(span) {
			if other, ok := s.rows[string(k)]; ok {
				if other == nil {
					continue
				}
				v = other
			}
			if !yield(k, v) {
				return
			}
		}
	}
}

func TestChecksFindWhatIsWrong(t *testing.T) {
	w, id := placed(t)
	if err := w.run.View(func(rd storage.Reader) error {
		in, err := named(rd, "test", file.Root, []byte("f"))
		if err != nil {
			return err
		}
		ino := inoOf(in)
		wrong := func(change func(*command.DataInode)) []byte {
			x, _ := loadInode(rd, ino)
			change(x)
			return encode(x)
		}
		for _, tc := range []struct {
			name, what string
			key, row   []byte
		}{
			{"a name is lost", "entry", dentryKey(file.Root, []byte("f")), nil},
			{"an inode is lost", "entry", inodeKey(ino), nil},
			{"too many links", "links", inodeKey(ino), wrong(func(in *command.DataInode) { in.Nlink = 2 })},
			{"no links", "links", inodeKey(ino), wrong(func(in *command.DataInode) { in.Nlink = 0 })},
			{"another type", "entry", inodeKey(ino), wrong(func(in *command.DataInode) { in.Mode = file.Fifo | 0o644 })},
			{"too few extents", "extents", inodeKey(ino), wrong(func(in *command.DataInode) { in.Extents = 0 })},
			{"other bytes", "usage", inodeKey(ino), wrong(func(in *command.DataInode) { in.Allocated++ })},
			{"the block's row is lost", "extents", blockKey(0, id.Bytes()), nil},
			{"the block is too short", "extents", blockKey(0, id.Bytes()), encode(&command.DataBlock{Refs: 1, Size: 5, Nodes: []uint64{1}})},
			{"the block counts more", "references", blockKey(0, id.Bytes()), encode(&command.DataBlock{Refs: 2, Size: 10, Nodes: []uint64{1}})},
			{"the extent is lost", "references", extentKey(ino, 0), nil},
		} {
			found := false
			for _, f := range everything(spoiled{rd, map[string][]byte{string(tc.key): tc.row}}) {
				found = found || f.What == tc.what
			}
			if !found {
				t.Errorf("%s: nothing of %q was found", tc.name, tc.what)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
