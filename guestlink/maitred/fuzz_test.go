package maitred_test

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// FuzzLogRequest: whatever a guest sends as a request, in however many pieces
// it arrives, is refused or is the request that protobuf reads of it, with no
// more records than there may be.
func FuzzLogRequest(f *testing.F) {
	good, err := proto.Marshal(&pb.LogRequest{Records: []*pb.LogRecord{
		{Severity: pb.LogSeverity_ERROR, Timestamp: &pb.Timestamp{Seconds: 1795000000, Nanos: 1}, Content: []byte("text")}, {}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint16(3))
	f.Add(bytes.Repeat([]byte{0x0a, 0x00}, 4097), uint16(0))
	f.Add(bytes.Repeat([]byte{0x0b}, 100), uint16(7))
	codec := maitred.LogCodec()
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		at := min(int(cut), len(b))
		var got, want pb.LogRequest
		err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:at]), mem.SliceBuffer(b[at:])}, &got)
		wantErr := proto.Unmarshal(b, &want)
		switch {
		case err == nil && (wantErr != nil || !proto.Equal(&got, &want)):
			t.Fatalf("read %v, protobuf reads %v, %v", &got, &want, wantErr)
		case err == nil && len(got.Records) > 4096:
			t.Fatalf("%d records", len(got.Records))
		case err != nil && wantErr == nil && len(b) < 2*4096:
			t.Fatalf("refused with %v", err)
		}
	})
}
