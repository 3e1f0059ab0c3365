package lock

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"missingos/storage/command"
)

func TestACloneHasEveryFieldButThePath(t *testing.T) {
	f := &command.LockFile{}
	fields := f.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch fd.Kind() {
		case protoreflect.BoolKind:
			f.ProtoReflect().Set(fd, protoreflect.ValueOfBool(true))
		case protoreflect.Uint64Kind:
			f.ProtoReflect().Set(fd, protoreflect.ValueOfUint64(uint64(i+1)))
		case protoreflect.Uint32Kind:
			f.ProtoReflect().Set(fd, protoreflect.ValueOfUint32(uint32(i+1)))
		case protoreflect.Int64Kind:
			f.ProtoReflect().Set(fd, protoreflect.ValueOfInt64(int64(i+1)))
		case protoreflect.BytesKind:
			f.ProtoReflect().Set(fd, protoreflect.ValueOfBytes([]byte("v")))
		case protoreflect.StringKind:
			f.ProtoReflect().Set(fd, protoreflect.ValueOfString("path"))
		default:
			t.Fatalf("field %s is of a kind that this test does not know", fd.Name())
		}
	}
	c := clone(f)
	f.Path = ""
	if !proto.Equal(c, f) {
		t.Errorf("got %v, want %v", c, f)
	}
}
