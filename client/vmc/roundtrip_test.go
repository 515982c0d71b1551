package vmc

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"
)

// Every message of the contract is the same after it went to JSON and back.
func TestEveryMessageRoundTrips(t *testing.T) {
	names := messageNames()
	if len(names) < 80 {
		t.Fatalf("only %d messages", len(names))
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(names).Draw(t, "message")
		s, err := find(name)
		if err != nil {
			t.Fatal(err)
		}
		want := s.request()
		fill(t, want.ProtoReflect(), 3)
		text, err := messageJSON(want)
		if err != nil {
			t.Fatal(err)
		}
		got := s.request()
		if err := parseJSON(string(text), got); err != nil || !proto.Equal(want, got) {
			t.Fatalf("%s came back as %v, %v", text, got, err)
		}
		b, err := proto.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if read, err := s.response(b); err != nil || !proto.Equal(want, read) {
			t.Fatalf("%q was read as %v, %v", b, read, err)
		}
	})
}

// fill sets some of a message's fields.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !rapid.Bool().Draw(t, string(fd.Name())) {
			continue
		}
		switch {
		case fd.IsMap():
			entries := m.Mutable(fd).Map()
			for range rapid.IntRange(1, 3).Draw(t, "entries") {
				key := scalar(t, fd.MapKey()).MapKey()
				if fd.MapValue().Message() != nil {
					t.Fatalf("%s is a map of messages, which this test does not fill", fd.FullName())
				}
				entries.Set(key, scalar(t, fd.MapValue()))
			}
		case fd.Message() != nil && depth == 0:
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range rapid.IntRange(1, 3).Draw(t, "length") {
				if fd.Message() != nil {
					fill(t, list.AppendMutable().Message(), depth-1)
					continue
				}
				list.Append(scalar(t, fd))
			}
		case fd.Message() != nil:
			fill(t, m.Mutable(fd).Message(), depth-1)
		default:
			m.Set(fd, scalar(t, fd))
		}
	}
}

func scalar(t *rapid.T, fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.String().Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOfN(rapid.Byte(), 1, 9).Draw(t, "bytes"))
	case protoreflect.EnumKind:
		// Numbers without a name come from newer programs.
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.Int32Range(0, 30).Draw(t, "enum")))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64"))
	}
	t.Fatalf("%s is of kind %v, which this test does not fill", fd.FullName(), fd.Kind())
	return protoreflect.Value{}
}
