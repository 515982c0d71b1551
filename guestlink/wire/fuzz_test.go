package wire_test

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// FuzzFewFields: what is taken has few fields, and what is refused is so
// without a panic.
func FuzzFewFields(f *testing.F) {
	for _, m := range []proto.Message{
		&pb.UpdateApplicationListRequest{Token: "t", Application: []*pb.Application{{DesktopFileId: "a", MimeTypes: []string{"b", "c"}}, {}}},
		&pb.UpdateApplicationListRequest{},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{0x12, 0, 0x12, 0, 0x12, 0, 0x12, 0, 0x12, 0, 0x12, 0, 0x12, 0})
	f.Add([]byte{0x13, 0x13, 0x14})
	codec := wire.FewFields(6)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &pb.UpdateApplicationListRequest{}
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m); err != nil {
			return
		}
		n := len(m.Application)
		for _, a := range m.Application {
			n += len(a.MimeTypes) + len(a.Extensions)
		}
		if n > 6 {
			t.Errorf("%d fields are taken", n)
		}
	})
}
