package vmc

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{
		"4096": 4096, "1K": 1 << 10, "512M": 512 << 20, "20G": 20 << 30, "20g": 20 << 30, "2T": 2 << 40, "1GiB": 1 << 30, "1GB": 1 << 30,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "G", "1.5G", "much", "1X", "99999999999G", "1 G"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

// Field 2 of requests about disks has two names in JSON; both at once would
// leave open which is meant.
func TestParseJSON(t *testing.T) {
	for text, want := range map[string]proto.Message{
		`{"vm_name": "a"}`:                           &pb.DestroyDiskImageRequest{VmName: "a"},
		`{"vmName": "a"}`:                            &pb.DestroyDiskImageRequest{VmName: "a"},
		`{"disk_path": "a"}`:                         &pb.DestroyDiskImageRequest{VmName: "a"},
		`{"diskPath": "a", "cryptohome_id": "1000"}`: &pb.DestroyDiskImageRequest{VmName: "a", CryptohomeId: "1000"},
		`{"name": "x", "disks": [{"path": "/d", "image_type": "DISK_IMAGE_QCOW2"}]}`: &pb.StartVmRequest{Name: "x",
			Disks: []*pb.DiskImage{{Path: "/d", ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2}}},
	} {
		got := want.ProtoReflect().New().Interface()
		if err := parseJSON(text, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		`{"vm_name": "a", "disk_path": "b"}`: "same field", `{"colour": 1}`: "colour", `[]`: "", `{`: "",
	} {
		if err := parseJSON(text, &pb.DestroyDiskImageRequest{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want an error with %q", text, err, says)
		}
	}
}

func TestWords(t *testing.T) {
	if got := address(0); got != "none" {
		t.Errorf("no address: %q", got)
	}
	// 100.115.92.2, its bytes in memory in network order.
	if got := address(0x025c7364); got != "100.115.92.2" {
		t.Errorf("address: %q", got)
	}
	if got := statusWord(pb.VmStatus_VM_STATUS_DISK_OP_IN_PROGRESS); got != "disk op in progress" {
		t.Errorf("status: %q", got)
	}
}
