package wire

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fewFields refuses messages of too many fields before any of them takes
// memory.
type fewFields struct {
	encoding.CodecV2
	limit int
}

func newFewFields(limit int) encoding.CodecV2 {
	return fewFields{encoding.GetCodecV2("proto"), limit}
}

// maxDepth is far more than any message of the contracts has.
const maxDepth = 16

func (c fewFields) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	left := c.limit
	if err := count(m.ProtoReflect().Descriptor(), b.ReadOnlyData(), &left, maxDepth); err != nil {
		return err
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{b}, v)
}

// count takes a message's fields at all depths from what is left.
func count(d protoreflect.MessageDescriptor, b []byte, left *int, depth int) error {
	if depth == 0 {
		return fmt.Errorf("messages in messages too deep")
	}
	for len(b) > 0 {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		b = b[k:]
		n := protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		fd := d.Fields().ByNumber(num)
		if typ == protowire.BytesType {
			in, _ := protowire.ConsumeBytes(b)
			switch {
			case fd == nil:
			case fd.Message() != nil:
				if err := count(fd.Message(), in, left, depth-1); err != nil {
					return err
				}
			case fd.IsList() && fd.Kind() != protoreflect.StringKind && fd.Kind() != protoreflect.BytesKind:
				*left -= len(in) // packed numbers
			}
		}
		if *left--; *left < 0 {
			return fmt.Errorf("a message of too many fields")
		}
		b = b[n:]
	}
	return nil
}
