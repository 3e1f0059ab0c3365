package command_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage/command"
)

func TestEnvelopeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := dc.RequestID{
			Client: rapid.Uint64().Draw(t, "client"), Seq: rapid.Uint64().Draw(t, "seq"),
			Done: rapid.Uint64().Draw(t, "done"), Issued: rapid.Int64().Draw(t, "issued"),
		}
		if rapid.Bool().Draw(t, "fenced") {
			id.Fence = dc.Fence{Lock: rapid.StringN(1, 20, dc.MaxFenceLockBytes).Draw(t, "lock"), Token: rapid.Uint64().Draw(t, "token")}
		}
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		encoded := command.Encode(id, body)
		if len(encoded) > len(body)+command.MaxEnvelopeBytes {
			t.Fatalf("%d bytes for a body of %d", len(encoded), len(body))
		}
		gotID, gotBody, err := command.Decode(encoded)
		if err != nil || gotID != id || !bytes.Equal(gotBody, body) {
			t.Fatalf("got %+v %x %v", gotID, gotBody, err)
		}
	})
}

func TestDamagedEnvelopesAreRefused(t *testing.T) {
	for _, f := range []dc.Fence{{}, {Lock: "l", Token: 300}} {
		whole := command.Encode(dc.RequestID{Client: 1, Seq: 300, Done: 200, Issued: 1 << 40, Fence: f}, nil)
		for n := range len(whole) {
			if _, _, err := command.Decode(whole[:n]); err == nil {
				t.Errorf("an envelope cut to %d of %d bytes was opened", n, len(whole))
			}
		}
	}
	if _, _, err := command.Decode([]byte{9, 1, 2, 3}); err == nil {
		t.Error("an unknown version was opened")
	}
}
