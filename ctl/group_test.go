package ctl

import (
	"bytes"
	"strings"
	"testing"

	"missingos/srv/dcpb"
)

func TestGroupShowTellsHowFarASnapshotIs(t *testing.T) {
	st := &dcpb.AdminStatusReply{Nodes: []*dcpb.AdminNode{{Id: 1, Name: "a"}, {Id: 2, Name: "b"}, {Id: 3, Name: "c"}}}
	for _, tt := range []struct {
		receiving *dcpb.Receiving
		want      string
	}{
		{nil, "behind"},
		{&dcpb.Receiving{From: 1, Index: 7, Bytes: 3 << 20, Size: 10 << 20}, "receiving 3.0MiB of about 10.0MiB (30%) from a"},
		{&dcpb.Receiving{From: 1, Bytes: 11 << 20, Size: 10 << 20}, "(99%) from a"},
		{&dcpb.Receiving{Bytes: 5}, "receiving 5B"},
		{&dcpb.Receiving{Bytes: 10 << 20, Size: 9 << 20, Whole: true}, "restoring 10.0MiB"},
	} {
		g := &dcpb.AdminGroup{Id: 5, Name: "kv/0", Leader: 1, Replicas: []*dcpb.AdminReplica{
			{Node: 1, Role: "voter", Health: "ok"}, {Node: 3, Role: "non-voter", Health: "behind", Receiving: tt.receiving},
		}}
		var b bytes.Buffer
		writeGroup(&b, g, st)
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%v is shown as\n%s", tt.receiving, b.String())
		}
		b.Reset()
		st.Groups = []*dcpb.AdminGroup{g}
		writeGroups(&b, st)
		if got := strings.Contains(b.String(), "c(non-voter)=receiving"); got != (tt.receiving != nil) {
			t.Errorf("%v is listed as\n%s", tt.receiving, b.String())
		}
	}
}
