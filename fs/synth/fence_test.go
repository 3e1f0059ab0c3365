package synth

import (
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"missingos/srv/dc"
)

// child starts a process that lives until the test has ended.
func child(t *testing.T) uint32 {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	return uint32(cmd.Process.Pid)
}

func TestWhoseDescriptorsAnAttributeIsFor(t *testing.T) {
	type opened struct {
		Name string
		By   uint32
	}
	self, one, other := uint32(os.Getpid()), child(t), child(t)
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	gone := uint32(ended.Process.Pid)
	for _, test := range []struct {
		name    string
		caller  uint32
		handles []opened
		want    []string
	}{
		{"one's own", self, []opened{{"a", self}, {"b", self}, {"c", one}}, []string{"a", "b"}},
		{"of a shell, by its child", one, []opened{{"a", self}}, []string{"a"}},
		{"the child's own before the shell's", one, []opened{{"a", self}, {"b", one}}, []string{"b"}},
		{"not of a brother", one, []opened{{"a", other}}, nil},
		{"not of a child", self, []opened{{"a", one}}, nil},
		{"not of who has ended", self, []opened{{"a", gone}}, nil},
		{"not of who cannot be seen", self, []opened{{"a", 0}}, nil},
		{"by somebody who cannot be seen", 0, []opened{{"a", self}, {"b", 0}}, nil},
		{"none", self, nil, nil},
	} {
		got, err := OpenedBy(test.caller, test.handles, func(o opened) uint32 { return o.By })
		var names []string
		for _, o := range got {
			names = append(names, o.Name)
		}
		if diff := cmp.Diff(names, test.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", test.name, diff)
		}
		if test.want == nil && (err == nil || dc.KindOf(err) != dc.Invalid) {
			t.Errorf("%s: %v, want EINVAL", test.name, err)
		}
	}
}
