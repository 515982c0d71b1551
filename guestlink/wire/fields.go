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
	// room may be nil.
	room *room
}

func newFewFields(limit int) encoding.CodecV2 {
	return fewFields{CodecV2: encoding.GetCodecV2("proto"), limit: limit}
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
	n := counter{fields: c.limit}
	if err := n.message(m.ProtoReflect().Descriptor(), b.ReadOnlyData(), maxDepth); err != nil {
		return err
	}
	if err := c.room.enter(v, n.memory); err != nil {
		return err
	}
	err := c.CodecV2.Unmarshal(mem.BufferSlice{b}, v)
	if err != nil {
		c.room.leave(v)
	}
	return err
}

// A counter looks at a message before it is read.
type counter struct {
	fields int // that there may still be
	// memory is about what the message will take, in bytes: small fields take
	// many times what they are sent as.
	memory int
}

// What Go takes, in bytes, rather more than less.
const (
	ofMessage = 64 // and of each of its fields
	ofField   = 24
	ofText    = 32
)

// message counts a message's fields at all depths.
func (n *counter) message(d protoreflect.MessageDescriptor, b []byte, depth int) error {
	if depth == 0 {
		return fmt.Errorf("messages in messages too deep")
	}
	n.memory += ofMessage + ofField*d.Fields().Len()
	for len(b) > 0 {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		b = b[k:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		if err := n.field(d.Fields().ByNumber(num), typ, b[:size], depth); err != nil {
			return err
		}
		if n.fields--; n.fields < 0 {
			return fmt.Errorf("a message of too many fields")
		}
		b = b[size:]
	}
	return nil
}

// field counts one; fd is nil when the contract does not know it.
func (n *counter) field(fd protoreflect.FieldDescriptor, typ protowire.Type, b []byte, depth int) error {
	n.memory += len(b)
	switch {
	case fd == nil || typ != protowire.BytesType:
		n.memory += ofField
		return nil
	case fd.Message() != nil:
		in, _ := protowire.ConsumeBytes(b)
		return n.message(fd.Message(), in, depth-1)
	case fd.IsList() && fd.Kind() != protoreflect.StringKind && fd.Kind() != protoreflect.BytesKind:
		n.fields -= len(b) // packed numbers
		n.memory += 8 * len(b)
	default:
		n.memory += ofText
	}
	return nil
}
