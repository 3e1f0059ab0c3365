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

// What is in the logs of clusters must be read for ever: these bytes do not change, only new ones come.
func TestStoredEnvelopesAreRead(t *testing.T) {
	id := dc.RequestID{Client: 0x1122334455667788, Seq: 300, Done: 200, Issued: 1000}
	fenced := id
	fenced.Fence = dc.Fence{Lock: "a/b", Token: 700}
	for _, test := range []struct {
		stored string
		want   dc.RequestID
	}{
		{"\x01\x88\x77\x66\x55\x44\x33\x22\x11\xac\x02\xc8\x01\xd0\x0fbody", id},
		{"\x02\x88\x77\x66\x55\x44\x33\x22\x11\xac\x02\xc8\x01\xd0\x0f\xbc\x05\x03a/bbody", fenced},
	} {
		got, body, err := command.Decode([]byte(test.stored))
		if err != nil || got != test.want || string(body) != "body" {
			t.Errorf("%q: %+v, %q, %v; want %+v", test.stored, got, body, err, test.want)
		}
		if again := command.Encode(test.want, []byte("body")); string(again) != test.stored {
			t.Errorf("%+v is stored as %q, want %q", test.want, again, test.stored)
		}
	}
}
