package maitred

import (
	"os"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/core"
	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

func TestStartTerminaRefuses(t *testing.T) {
	client, _ := serve(t, nil)
	for name, tt := range map[string]struct {
		device string
		code   codes.Code
	}{
		"no disk":               {"", codes.InvalidArgument},
		"a bare name":           {"vdb", codes.InvalidArgument},
		"a file":                {"/etc/passwd", codes.InvalidArgument},
		"a disk that is not":    {"/dev/no-such-disk", codes.FailedPrecondition},
		"a device that is none": {"/dev/null", codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: tt.device})
			wantCode(t, err, tt.code)
		})
	}
}

func TestStartTermina(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	stateful := coretest.Dir(t) + "/stateful"
	client, _ := serve(t, func(s *Server) { s.statefulDir = stateful })
	device, _ := coretest.Disk(t, diskSize)
	start := func(device string) *pb.StartTerminaResponse {
		t.Helper()
		got, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := start(device)
	if first.MountResult != pb.StartTerminaResponse_SUCCESS || !first.FreeBytesHasValue || first.FreeBytes <= 0 || first.FreeBytes > diskSize {
		t.Errorf("a new disk: %v", first)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || !strings.Contains(string(mounts), stateful+" btrfs rw,relatime,discard") || !strings.Contains(string(mounts), "user_subvol_rm_allowed") {
		t.Errorf("mounted as\n%s", mounts)
	}
	if err := os.WriteFile(stateful+"/precious", []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := start(device); again.MountResult != pb.StartTerminaResponse_SUCCESS || !again.FreeBytesHasValue {
		t.Errorf("a second call: %v", again)
	}
	other, _ := coretest.Disk(t, diskSize)
	_, err = client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: other})
	wantCode(t, err, codes.FailedPrecondition)

	// The next boot.
	if err := unix.Unmount(stateful, 0); err != nil {
		t.Fatal(err)
	}
	if next := start(device); next.MountResult != pb.StartTerminaResponse_SUCCESS {
		t.Errorf("the next boot: %v", next)
	}
	if data, err := os.ReadFile(stateful + "/precious"); err != nil || string(data) != "data" {
		t.Errorf("the data after the next boot: %q, %v", data, err)
	}
}

func TestStartTerminaWithAForeignDisk(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	stateful := coretest.Dir(t) + "/stateful"
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	device, _ := coretest.Disk(t, diskSize)
	if err := server.table.Run(t.Context(), "mkfs.ext4", "-q", device); err != nil {
		t.Fatal(err)
	}
	got, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device})
	if err != nil || got.MountResult != pb.StartTerminaResponse_FAILURE || got.FreeBytesHasValue || got.FreeBytes != -1 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := (core.MountPoint{Source: device, Target: stateful, Type: "ext4"}).MakeAndMount(); err != nil {
		t.Errorf("the disk is damaged: %v", err)
	}
}

// The newest root of a disk is lost: what was written before is still there.
func TestStartTerminaWithAnOlderRoot(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	dir := coretest.Dir(t)
	stateful := dir + "/stateful"
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	device, _ := coretest.Disk(t, 256<<20)
	if err := core.MakeBtrfs(t.Context(), server.table, device); err != nil {
		t.Fatal(err)
	}
	old := core.MountPoint{Source: device, Target: dir + "/old", Type: "btrfs"}
	if err := old.MakeAndMount(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second"} {
		writeFile(t, old.Target+"/"+name, name)
		unix.Sync()
	}
	if err := unix.Unmount(old.Target, 0); err != nil {
		t.Fatal(err)
	}
	coretest.LoseNewestRoot(t, device)
	for range 2 {
		got, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device})
		if err != nil || got.MountResult != pb.StartTerminaResponse_PARTIAL_DATA_LOSS || !got.FreeBytesHasValue || got.FreeBytes <= 0 {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	if data, err := os.ReadFile(stateful + "/first"); err != nil || string(data) != "first" {
		t.Errorf("the older file holds %q, %v", data, err)
	}
	// It is mended: the next start finds nothing amiss.
	if err := unix.Unmount(stateful, 0); err != nil {
		t.Fatal(err)
	}
	got, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device})
	if err != nil || got.MountResult != pb.StartTerminaResponse_SUCCESS {
		t.Errorf("afterwards %v, %v", got, err)
	}
}

func TestStartTerminaWithABrokenDisk(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	stateful := coretest.Dir(t) + "/stateful"
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	device, _ := coretest.Disk(t, diskSize)
	if err := core.MakeBtrfs(t.Context(), server.table, device); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The first superblock goes; a copy lies at 64 MiB.
	if _, err := f.WriteAt(make([]byte, 4096), 64<<10); err != nil {
		t.Fatal(err)
	}
	got, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device})
	if err != nil || got.MountResult != pb.StartTerminaResponse_FAILURE {
		t.Errorf("got %v, %v", got, err)
	}
	if has, err := core.HasBtrfs(device); err != nil || !has {
		t.Errorf("it was written over (%v)", err)
	}
}

func TestTerminaSettings(t *testing.T) {
	for what, tt := range map[string]struct {
		req  *pb.StartTerminaRequest
		want string // empty when it is refused
	}{
		"nothing": {&pb.StartTerminaRequest{}, "ALLOW_PRIVILEGED_CONTAINERS=false"},
		"all": {&pb.StartTerminaRequest{AllowPrivilegedContainers: true, LxdIpv4Subnet: "100.115.92.193/28",
			TremplinIpv4Address: wire(t, "100.115.92.1"), Feature: []pb.StartTerminaRequest_Feature{99, 1, 0, 1}},
			"ALLOW_PRIVILEGED_CONTAINERS=true LXD_IPV4_SUBNET=100.115.92.193/28 TREMPLIN_IPV4_ADDRESS=100.115.92.1 FEATURES=USED_BY_TESTS"},
		"an address alone":          {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "100.115.92.193"}},
		"IPv6":                      {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "2001:db8::/28"}},
		"a word":                    {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "auto"}},
		"two lines":                 {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "100.115.92.193/28\nX=1"}},
		"room for nobody":           {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "100.115.92.193/31"}},
		"the world":                 {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "100.115.92.193/0"}},
		"loopback":                  {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "127.0.0.1/28"}},
		"a prefix that is too long": {req: &pb.StartTerminaRequest{LxdIpv4Subnet: "100.115.92.193/33"}},
	} {
		got, err := terminaSettings(tt.req)
		if tt.want == "" {
			wantCode(t, err, codes.InvalidArgument)
		} else if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

func TestStartTerminaKeepsSettings(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	stateful := coretest.Dir(t) + "/stateful"
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	device, _ := coretest.Disk(t, diskSize)
	for _, subnet := range []string{"100.115.92.193/28", "100.115.93.193/28"} {
		if _, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device, LxdIpv4Subnet: subnet}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(server.root + terminaPath)
		if want := "ALLOW_PRIVILEGED_CONTAINERS=false\nLXD_IPV4_SUBNET=" + subnet + "\n"; err != nil || string(data) != want {
			t.Errorf("%q, %v; want %q", data, err, want)
		}
	}
}
