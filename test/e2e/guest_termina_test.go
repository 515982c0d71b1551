package e2e

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
)

func (g *liveGuest) startTermina(t *testing.T) {
	start := func(req *vmtoolspb.StartTerminaRequest) (*vmtoolspb.StartTerminaResponse, error) {
		return g.m.StartTermina(t.Context(), req)
	}
	for what, tt := range map[string]struct {
		req  *vmtoolspb.StartTerminaRequest
		code codes.Code
	}{
		"no disk":           {&vmtoolspb.StartTerminaRequest{StatefulDevice: "/dev/none"}, codes.FailedPrecondition},
		"a path elsewhere":  {&vmtoolspb.StartTerminaRequest{StatefulDevice: "vdb"}, codes.InvalidArgument},
		"a network of none": {&vmtoolspb.StartTerminaRequest{StatefulDevice: "/dev/vdb", LxdIpv4Subnet: "100.115.92.193/32"}, codes.InvalidArgument},
	} {
		if _, err := start(tt.req); status.Code(err) != tt.code {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 2 {
		r, err := start(&vmtoolspb.StartTerminaRequest{StatefulDevice: "/dev/vdb", LxdIpv4Subnet: "100.115.92.193/28",
			AllowPrivilegedContainers: true, Feature: []vmtoolspb.StartTerminaRequest_Feature{vmtoolspb.StartTerminaRequest_USED_BY_TESTS, 99}})
		if err != nil || r.MountResult != vmtoolspb.StartTerminaResponse_SUCCESS || !r.FreeBytesHasValue || r.FreeBytes <= 0 || r.FreeBytes > 1<<30 {
			t.Errorf("%v, %v", r, err)
		}
	}
	if got := g.sh(t, ". /run/auberge/termina.env; echo $LXD_IPV4_SUBNET $ALLOW_PRIVILEGED_CONTAINERS $FEATURES"); got != "100.115.92.193/28 true USED_BY_TESTS" {
		t.Errorf("what is left for containers: %q", got)
	}
	if got := g.sh(t, "dmesg | grep -c 'a feature of containers is ignored.*feature=99'"); got != "2" {
		t.Errorf("of the ignored feature it tells %s times", got)
	}
}

// Disks that are not what they should be: nothing is written over, what can
// be saved is, and the caller is told.
func TestStatefulDisks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 30}, &disk)
	disks := []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}
	alice.start(&pb.StartVmRequest{Name: "x", Disks: disks})
	g := &liveGuest{client: alice, vm: "x", m: alice.maitred("x")}
	failure := func(what string) {
		t.Helper()
		r, err := g.m.StartTermina(t.Context(), &vmtoolspb.StartTerminaRequest{StatefulDevice: "/dev/vdb"})
		if err != nil || r.MountResult != vmtoolspb.StartTerminaResponse_FAILURE || r.FreeBytes != -1 || r.FreeBytesHasValue {
			t.Errorf("%s: %v, %v", what, r, err)
		}
	}
	g.sh(t, "mkfs.ext4 -q /dev/vdb; mount -t ext4 /dev/vdb /mnt/stateful; echo precious > /mnt/stateful/f; umount /mnt/stateful")
	failure("an ext4")
	if got := g.sh(t, "mount -t ext4 /dev/vdb /mnt/stateful; cat /mnt/stateful/f; umount /mnt/stateful"); got != "precious" {
		t.Errorf("the ext4 holds %q", got)
	}
	// Without its first superblock a btrfs cannot be mounted, and can be mended.
	g.sh(t, "mkfs.btrfs -q -f /dev/vdb; dd if=/dev/zero of=/dev/vdb bs=4k seek=16 count=1 conv=notrunc status=none; sync")
	failure("a btrfs that lost its superblock")
	if got := g.sh(t, "btrfs rescue super-recover -y /dev/vdb > /dev/null; mount -t btrfs /dev/vdb /mnt/stateful && echo mended; umount /mnt/stateful"); got != "mended" {
		t.Errorf("afterwards: %q", got)
	}
	g.sh(t, "mount -t btrfs /dev/vdb /mnt/stateful; echo first > /mnt/stateful/first; sync; echo second > /mnt/stateful/second; sync; umount /mnt/stateful")
	alice.stop("x")

	coretest.LoseNewestRoot(t, disk.DiskPath)
	start := func(want pb.StartVmResponse_MountResult) {
		t.Helper()
		var resp pb.StartVmResponse
		alice.must("StartVm", &pb.StartVmRequest{Name: "x", StartTermina: true, Disks: disks}, &resp)
		if !resp.Success || resp.MountResult != want || !resp.FreeBytesHasValue {
			t.Fatalf("StartVm: %v, want %v", &resp, want)
		}
		if got := alice.vsh("x", "cat", "/mnt/stateful/first"); got != "first" {
			t.Errorf("the older file holds %q", got)
		}
		alice.stop("x")
	}
	start(pb.StartVmResponse_PARTIAL_DATA_LOSS)
	start(pb.StartVmResponse_SUCCESS)
	b.gone()
}
