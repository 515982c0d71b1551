package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// Each of maitred's rpcs, its effect observed in one live guest.
func TestMaitred(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 30}, &disk)
	alice.start(&pb.StartVmRequest{Name: "x", Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}})
	m := alice.maitred("x")
	ctx := t.Context()
	g := &liveGuest{client: alice, vm: "x", m: m, disk: disk.DiskPath}

	t.Run("GetKernelVersion", func(t *testing.T) {
		r, err := m.GetKernelVersion(ctx, &vmtoolspb.EmptyMessage{})
		if err != nil {
			t.Fatal(err)
		}
		if got := alice.vsh("x", "uname", "-r"); r.KernelRelease != got {
			t.Errorf("release %q, uname says %q", r.KernelRelease, got)
		}
	})
	t.Run("LaunchProcess", func(t *testing.T) {
		run := func(req *vmtoolspb.LaunchProcessRequest) *vmtoolspb.LaunchProcessResponse {
			t.Helper()
			r, err := m.LaunchProcess(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := run(&vmtoolspb.LaunchProcessRequest{Argv: []string{"sh", "-c", "echo $WORD > /run/word; exit 7"},
			Env: map[string]string{"WORD": "hello"}, WaitForExit: true})
		if r.Status != vmtoolspb.ProcessStatus_EXITED || r.Code != 7 {
			t.Errorf("exit 7: %v", r)
		}
		if got := alice.vsh("x", "cat", "/run/word"); got != "hello" {
			t.Errorf("the environment: %q", got)
		}
		if r := run(&vmtoolspb.LaunchProcessRequest{Argv: []string{"sh", "-c", "kill -9 $$"}, WaitForExit: true}); r.Status != vmtoolspb.ProcessStatus_SIGNALED || r.Code != 9 {
			t.Errorf("killed: %v", r)
		}
		if r := run(&vmtoolspb.LaunchProcessRequest{Argv: []string{"sleep", "1000"}}); r.Status != vmtoolspb.ProcessStatus_LAUNCHED {
			t.Errorf("in the background: %v", r)
		}
		if r := run(&vmtoolspb.LaunchProcessRequest{Argv: []string{"/no/such/program"}, WaitForExit: true}); r.Status != vmtoolspb.ProcessStatus_FAILED {
			t.Errorf("no program: %v", r)
		}
		_, err := m.LaunchProcess(ctx, &vmtoolspb.LaunchProcessRequest{Argv: []string{"true"}, Respawn: true, WaitForExit: true})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("respawn and wait: %v", err)
		}
	})
	t.Run("LaunchProcessRespawn", g.launchRespawn)
	t.Run("LaunchProcessConsole", g.launchOnConsole)
	t.Run("ConfigureContainerGuest", g.configureContainerGuest)
	t.Run("SetTimezone", g.setTimezone)
	t.Run("SetUpUser", g.setUpUser)
	t.Run("OnHostNetworkChanged", g.onHostNetworkChanged)
	t.Run("ResetIPv6", g.resetIPv6)
	t.Run("SetTime", func(t *testing.T) {
		if _, err := m.SetTime(ctx, &vmtoolspb.SetTimeRequest{Time: timestamppb.New(time.Unix(4_000_000_000, 0))}); err != nil {
			t.Fatal(err)
		}
		if got := alice.vsh("x", "date", "+%Y"); got != "2096" {
			t.Errorf("the year is %s", got)
		}
		if _, err := m.SetTime(ctx, &vmtoolspb.SetTimeRequest{Time: timestamppb.New(time.Unix(1, 0))}); err != nil {
			t.Fatal(err)
		}
		if got := alice.vsh("x", "date", "+%Y"); got != "2096" {
			t.Errorf("after a time about zero the year is %s", got)
		}
	})
	t.Run("SetResolvConfig", func(t *testing.T) {
		_, err := m.SetResolvConfig(ctx, &vmtoolspb.SetResolvConfigRequest{ResolvConfig: &vmtoolspb.ResolvConfig{
			Nameservers: []string{"192.0.2.1"}, SearchDomains: []string{"linux.test"}}})
		if err != nil {
			t.Fatal(err)
		}
		got := alice.vsh("x", "cat", "/etc/resolv.conf")
		if !strings.Contains(got, "nameserver 192.0.2.1") || !strings.Contains(got, "search linux.test") {
			t.Errorf("resolv.conf: %s", got)
		}
		_, err = m.SetResolvConfig(ctx, &vmtoolspb.SetResolvConfigRequest{ResolvConfig: &vmtoolspb.ResolvConfig{
			Nameservers: []string{"192.0.2.1\noptions evil"}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a line break: %v", err)
		}
	})
	t.Run("ConfigureNetwork", g.configureNetwork)
	t.Run("Mount", func(t *testing.T) {
		r, err := m.Mount(ctx, &vmtoolspb.MountRequest{Source: "/dev/vdb", Target: "/mnt/data/a", Fstype: "btrfs",
			CreateTarget: true, MkfsIfNeeded: true, Permissions: 0o777})
		if err != nil || r.Error != 0 {
			t.Fatalf("%v, %v", r, err)
		}
		if got := alice.vsh("x", "sh", "-c", "findmnt -n -o FSTYPE /mnt/data/a; stat -c %a /mnt/data/a"); got != "btrfs\n777" {
			t.Errorf("mounted: %q", got)
		}
		r, err = m.Mount(ctx, &vmtoolspb.MountRequest{Source: "/dev/none", Target: "/mnt/data/a", Fstype: "ext4"})
		if err != nil || r.Error == 0 {
			t.Errorf("no device: %v, %v", r, err)
		}
		g.sh(t, "umount /mnt/data/a")
	})
	t.Run("MountFlags", g.mountFlags)
	t.Run("Mount9P", g.mount9P)
	t.Run("StartTermina", g.startTermina)
	t.Run("PrepareToSuspend", g.prepareToSuspend)
	t.Run("UpdateStorageBalloon", g.updateStorageBalloon)
	t.Run("ResizeFilesystem", g.resize)
	t.Run("Shutdown", func(t *testing.T) {
		ear := alice.listen()
		if _, err := m.Shutdown(ctx, &vmtoolspb.EmptyMessage{}); err != nil {
			t.Error(err)
		}
		ear.expect("x", "VmStopped")
	})
	alice.stop("x")
	b.gone()
}
