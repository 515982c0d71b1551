package concierge

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

type fdTypes = []pb.StartVmRequest_FdType

func TestSortFDs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string, flag int) *os.File {
		t.Helper()
		fd, err := unix.Open(path, flag|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), path)
		t.Cleanup(func() { f.Close() })
		return f
	}
	ro, rw := open(path, unix.O_RDONLY), open(path, unix.O_RDWR)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	const kernel, rootfs, initrd, storage = pb.StartVmRequest_KERNEL, pb.StartVmRequest_ROOTFS, pb.StartVmRequest_INITRD, pb.StartVmRequest_STORAGE
	for name, test := range map[string]struct {
		req   *pb.StartVmRequest
		files []*os.File
		want  fdMap
		err   string
	}{
		"none":                       {req: &pb.StartVmRequest{}, want: fdMap{}},
		"two":                        {req: &pb.StartVmRequest{Fds: fdTypes{initrd, kernel}}, files: []*os.File{ro, rw}, want: fdMap{initrd: ro, kernel: rw}},
		"the seed's storage":         {req: &pb.StartVmRequest{UseFdForStorage: true, StartTermina: true}, files: []*os.File{rw}, want: fdMap{storage: rw}},
		"the seed's without termina": {req: &pb.StartVmRequest{UseFdForStorage: true}, want: fdMap{}},
		"the seed's, nothing came":   {req: &pb.StartVmRequest{UseFdForStorage: true, StartTermina: true}, err: "describes 1 descriptors, 0 came"},
		"more than described":        {req: &pb.StartVmRequest{}, files: []*os.File{ro}, err: "describes 0 descriptors, 1 came"},
		"fewer than described":       {req: &pb.StartVmRequest{Fds: fdTypes{kernel, rootfs}}, files: []*os.File{ro}, err: "describes 2 descriptors, 1 came"},
		"twice the same":             {req: &pb.StartVmRequest{Fds: fdTypes{kernel, kernel}}, files: []*os.File{ro, rw}, err: "two descriptors of type KERNEL"},
		"a type that we have not":    {req: &pb.StartVmRequest{Fds: fdTypes{pb.StartVmRequest_PFLASH}}, files: []*os.File{ro}, err: "not supported"},
		"a type that is none":        {req: &pb.StartVmRequest{Fds: fdTypes{77}}, files: []*os.File{ro}, err: "not supported"},
		"a pipe":                     {req: &pb.StartVmRequest{Fds: fdTypes{kernel}}, files: []*os.File{r}, err: "no regular file"},
		"a directory":                {req: &pb.StartVmRequest{Fds: fdTypes{kernel}}, files: []*os.File{open(dir, unix.O_RDONLY)}, err: "no regular file"},
		"a device":                   {req: &pb.StartVmRequest{Fds: fdTypes{rootfs}}, files: []*os.File{open("/dev/null", unix.O_RDWR)}, err: "no regular file"},
		"for writing only":           {req: &pb.StartVmRequest{Fds: fdTypes{rootfs}}, files: []*os.File{open(path, unix.O_WRONLY)}, err: "not open for reading"},
		"a mere path":                {req: &pb.StartVmRequest{Fds: fdTypes{rootfs}}, files: []*os.File{open(path, unix.O_PATH)}, err: "not open for reading"},
	} {
		got, err := sortFDs(test.req, test.files)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v, want %q", name, err, test.err)
			}
			continue
		}
		if err != nil || len(got) != len(test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		for k, f := range test.want {
			if got[k] != f {
				t.Errorf("%s: %v is %v", name, k, got[k])
			}
		}
	}
}

func TestPatience(t *testing.T) {
	for _, test := range []struct {
		seconds uint32
		accel   vmm.Accel
		want    time.Duration
	}{
		{0, vmm.AccelKVM, time.Minute}, {0, vmm.AccelTCG, 3 * time.Minute}, {7, vmm.AccelTCG, 7 * time.Second},
		{3600, vmm.AccelKVM, time.Hour}, {3601, vmm.AccelKVM, time.Hour}, {1<<32 - 1, vmm.AccelKVM, time.Hour},
	} {
		if got := patience(test.seconds, test.accel); got != test.want {
			t.Errorf("%d s on %s: %v, want %v", test.seconds, test.accel, got, test.want)
		}
	}
}

// Paths are opened as the caller, except for an administrator, who acts as
// the owner.
func TestOpensAs(t *testing.T) {
	caller := policy.Caller{Name: ":1.5", UID: 64101, Groups: []uint32{64101, 7}}
	own := opensAs(policy.Subject{Caller: caller, Owner: policy.Owner{UID: 64101}})
	if diff := cmp.Diff(caller, own); diff != "" {
		t.Error(diff)
	}
	admin := opensAs(policy.Subject{Caller: policy.Caller{UID: 0, Groups: []uint32{0}}, Owner: policy.Owner{UID: 64101}})
	if diff := cmp.Diff(policy.Caller{UID: 64101}, admin); diff != "" {
		t.Error(diff)
	}
}

func TestCheckSupported(t *testing.T) {
	long := strings.Repeat("x", maxParams)
	for name, test := range map[string]struct {
		req  *pb.StartVmRequest
		want string
	}{
		"nothing":                   {&pb.StartVmRequest{}, ""},
		"a Termina":                 {&pb.StartVmRequest{StartTermina: true, VmType: pb.VmInfo_TERMINA}, ""},
		"a Bruschetta":              {&pb.StartVmRequest{VmType: pb.VmInfo_BRUSCHETTA}, ""},
		"termina's setup in it":     {&pb.StartVmRequest{StartTermina: true, VmType: pb.VmInfo_BRUSCHETTA}, "start_termina"},
		"a DLC":                     {&pb.StartVmRequest{Vm: &pb.VirtualMachineSpec{DlcId: "x"}}, "dlc_id"},
		"long parameters":           {&pb.StartVmRequest{KernelParams: []string{long}}, "kernel parameters"},
		"as long as they can be":    {&pb.StartVmRequest{KernelParams: []string{long[1:]}}, ""},
		"many parameters":           {&pb.StartVmRequest{KernelParams: slices.Repeat([]string{"x"}, maxParams)}, "kernel parameters"},
		"NUL in a parameter":        {&pb.StartVmRequest{KernelParams: []string{"a\x00b"}}, "control"},
		"OEM strings":               {&pb.StartVmRequest{OemStrings: slices.Repeat([]string{strings.Repeat(`"`, maxOEMBytes/maxOEM)}, maxOEM)}, ""},
		"too many OEM strings":      {&pb.StartVmRequest{OemStrings: make([]string, maxOEM+1)}, "OEM strings"},
		"too long OEM strings":      {&pb.StartVmRequest{OemStrings: []string{strings.Repeat("x", maxOEMBytes), "x"}}, "OEM strings"},
		"NUL in an OEM string":      {&pb.StartVmRequest{OemStrings: []string{"a\x00"}}, "NUL"},
		"as many disks as can be":   {&pb.StartVmRequest{Disks: make([]*pb.DiskImage, maxDisks)}, ""},
		"one disk more":             {&pb.StartVmRequest{Disks: make([]*pb.DiskImage, maxDisks+1)}, "disks"},
		"a type that is none":       {&pb.StartVmRequest{VmType: 99}, "not supported"},
		"big GL":                    {&pb.StartVmRequest{EnableBigGl: true}, "enable_big_gl"},
		"a proxy to the host's TPM": {&pb.StartVmRequest{VtpmProxy: true}, "vtpm_proxy"},
	} {
		err := checkSupported(test.req)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestDeviceNames(t *testing.T) {
	// The root file system, the tools, the most disks and a storage descriptor.
	if first, last := deviceName(0), deviceName(2+maxDisks); first != "/dev/vda" || last != "/dev/vdm" {
		t.Errorf("%s to %s", first, last)
	}
}

// A planner prepares starts without starting.
type planner struct {
	*bed
	s   *Service
	dir string
}

func newPlanner(t *testing.T) *planner {
	t.Helper()
	b := newBed(t)
	return &planner{bed: b, s: b.serve(), dir: t.TempDir()}
}

func (p *planner) file(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *planner) open(path string) *os.File {
	p.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	return f
}

func (p *planner) prepare(req *pb.StartVmRequest, files ...*os.File) (*plan, error) {
	p.t.Helper()
	v := &vm{key: keyOf(alice.Owner, "x"), id: "abc", cid: 33, net: p.s.nets.network(5)}
	return p.s.prepare(p.t.Context(), v, alice, req, files)
}

const elfKernel = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00 a kernel of one's own"

// content reads what a plan gives to the VM.
func content(t *testing.T, p *plan, f vmm.File) string {
	t.Helper()
	b := make([]byte, 100)
	n, _ := p.files[f].ReadAt(b, 0)
	return string(b[:n])
}

func TestPrepareDefault(t *testing.T) {
	pl := newPlanner(t)
	p, err := pl.prepare(&pb.StartVmRequest{Name: "x", KernelParams: []string{"a=b", "c"}, OemStrings: []string{"o"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for what, f := range map[string]vmm.File{"kernel": p.spec.Kernel, "initrd": p.spec.Initrd, "rootfs": p.spec.Disks[0].File} {
		if got := content(t, p, f); got != what {
			t.Errorf("the %s is %q", what, got)
		}
	}
	if want := baseCmdline + " auberge.vsock=user a=b c"; p.spec.Cmdline != want {
		t.Errorf("the command line is %q, want %q", p.spec.Cmdline, want)
	}
	if !p.spec.Disks[0].ReadOnly || p.spec.Disks[0].Format != vmm.FormatRaw || len(p.spec.Disks) != 1 {
		t.Errorf("disks %+v", p.spec.Disks)
	}
	want := vmm.Network{Subnet: netip.MustParsePrefix("100.115.128.40/29"), Gateway: netip.MustParseAddr("100.115.128.41"),
		Guest: netip.MustParseAddr("100.115.128.42"), NameServer: netip.MustParseAddr("100.115.128.43"), Restricted: true}
	if p.spec.Network == nil || *p.spec.Network != want {
		t.Errorf("network %+v", p.spec.Network)
	}
	if p.spec.Vsock.CID != 33 || p.spec.Vsock.Mode != vsock.ModeUser || !slices.Equal(p.spec.Vsock.Ports, vsock.HostPorts[:]) || p.spec.ID != "abc" {
		t.Errorf("vsock %+v, id %q", p.spec.Vsock, p.spec.ID)
	}
	if err := p.spec.Check(len(p.files)); err != nil {
		t.Error(err)
	}
	if len(pl.opener.calls) > 0 {
		t.Errorf("opened as the caller: %q", pl.opener.calls)
	}
}

func TestPrepareOwnFiles(t *testing.T) {
	pl := newPlanner(t)
	kernel, root := pl.file("kernel", elfKernel), pl.file("root", "my root")
	p, err := pl.prepare(&pb.StartVmRequest{Name: "x", WritableRootfs: true, Vm: &pb.VirtualMachineSpec{Kernel: kernel, Rootfs: root}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if content(t, p, p.spec.Kernel) != elfKernel || content(t, p, p.spec.Initrd) != "initrd" || content(t, p, p.spec.Disks[0].File) != "my root" {
		t.Error("other files")
	}
	if p.spec.Disks[0].ReadOnly || !strings.Contains(p.spec.Cmdline, " auberge.rootfs=rw") {
		t.Errorf("disk %+v, command line %q", p.spec.Disks[0], p.spec.Cmdline)
	}
	if want := []string{"64101 ro " + kernel, "64101 rw " + root}; !slices.Equal(pl.opener.calls, want) {
		t.Errorf("opened %q, want %q", pl.opener.calls, want)
	}
	// With start_termina, paths are ignored, descriptors are not.
	pl.opener.calls = nil
	p2, err := pl.prepare(&pb.StartVmRequest{Name: "x", StartTermina: true, Fds: fdTypes{pb.StartVmRequest_STORAGE, pb.StartVmRequest_INITRD},
		Vm: &pb.VirtualMachineSpec{Kernel: kernel, Rootfs: root}, Features: []pb.StartVmRequest_TerminaFeature{1, 2}}, pl.open(pl.file("storage", "storage")), pl.open(pl.file("initrd", "my initrd")))
	if err != nil {
		t.Fatal(err)
	}
	defer p2.close()
	if content(t, p2, p2.spec.Kernel) != "kernel" || content(t, p2, p2.spec.Initrd) != "my initrd" || content(t, p2, p2.spec.Disks[1].File) != "storage" {
		t.Error("other files with start_termina")
	}
	if diff := cmp.Diff(&guestlink.Termina{StatefulDevice: "/dev/vdb", Privileged: true, Features: []int32{1, 2}}, p2.termina); diff != "" {
		t.Error(diff)
	}
	if len(p2.mounts) > 0 || len(pl.opener.calls) > 0 {
		t.Errorf("mounts %v, opened %q", p2.mounts, pl.opener.calls)
	}
}

// The installed image's tools come after its root, and only for VMs that are
// prepared for containers and have that root.
func TestPrepareTools(t *testing.T) {
	pl := newPlanner(t)
	addTools(t, pl.cfg.ImageDir)
	disk := &pb.DiskImage{Path: pl.file("disk", "disk"), Writable: true}
	for name, test := range map[string]struct {
		req      *pb.StartVmRequest
		fd       string
		disks    []string
		stateful string
	}{
		"with containers":    {&pb.StartVmRequest{StartTermina: true}, "", []string{"rootfs", "tools!", "disk"}, "/dev/vdc"},
		"a kernel of theirs": {&pb.StartVmRequest{StartTermina: true, Fds: fdTypes{pb.StartVmRequest_KERNEL}}, elfKernel, []string{"rootfs", "tools!", "disk"}, "/dev/vdc"},
		"a root of theirs":   {&pb.StartVmRequest{StartTermina: true, Fds: fdTypes{pb.StartVmRequest_ROOTFS}}, "my root", []string{"my root", "disk"}, "/dev/vdb"},
		"a plain VM":         {&pb.StartVmRequest{}, "", []string{"rootfs", "disk"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.req.Name, test.req.Disks = "x", []*pb.DiskImage{disk}
			var fds []*os.File
			if test.fd != "" {
				fds = append(fds, pl.open(pl.file("fd", test.fd)))
			}
			p, err := pl.prepare(test.req, fds...)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			var disks []string
			for _, d := range p.spec.Disks {
				disks = append(disks, content(t, p, d.File))
				if tools := d.Serial == "tools"; tools != (content(t, p, d.File) == "tools!") || tools && !d.ReadOnly {
					t.Errorf("disk %+v", d)
				}
			}
			if diff := cmp.Diff(test.disks, disks); diff != "" {
				t.Error(diff)
			}
			stateful := ""
			if p.termina != nil {
				stateful = p.termina.StatefulDevice
			}
			if stateful != test.stateful {
				t.Errorf("the stateful disk is %s, want %s", stateful, test.stateful)
			}
			if err := p.spec.Check(len(p.files)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPrepareDisks(t *testing.T) {
	pl := newPlanner(t)
	raw, rw, q := pl.file("raw", "raw"), pl.file("rw", "rw"), pl.file("q", string(qcow2(3, 0, 0, 0)))
	store := pl.s.storeDir(alice.Owner)
	if err := os.MkdirAll(store, 0o700); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(store, "eA==.img")
	if err := os.WriteFile(own, []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	req := &pb.StartVmRequest{Name: "x", StartTermina: true, Fds: fdTypes{pb.StartVmRequest_STORAGE}, Disks: []*pb.DiskImage{
		{Path: own, Writable: true},
		{Path: raw, DoMount: true, MountPoint: "/mnt/a", Fstype: "ext4", Flags: 8, Data: "x"},
		{Path: rw, ImageType: pb.DiskImageType_DISK_IMAGE_RAW, Writable: true, DoMount: true, MountPoint: "/mnt/b", Fstype: "btrfs"},
		{Path: q, ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2},
	}}
	storage := pl.open(pl.file("storage", "storage"))
	p, err := pl.prepare(req, storage)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for i, want := range []string{"rootfs", "own", "raw", "rw", string(qcow2(3, 0, 0, 0)[:100]), "storage"} {
		if got := content(t, p, p.spec.Disks[i].File); got != want {
			t.Errorf("disk %d is %q, want %q", i, got, want)
		}
	}
	for i, want := range []vmm.Disk{{ReadOnly: true, Format: vmm.FormatRaw}, {Format: vmm.FormatRaw}, {ReadOnly: true, Format: vmm.FormatRaw},
		{Format: vmm.FormatRaw}, {ReadOnly: true, Format: vmm.FormatQcow2}, {Format: vmm.FormatRaw}} {
		if d := p.spec.Disks[i]; d.ReadOnly != want.ReadOnly || d.Format != want.Format {
			t.Errorf("disk %d: %+v", i, d)
		}
	}
	mounts := []guestlink.Mount{
		{Source: "/dev/vdc", Target: "/mnt/a", FSType: "ext4", Flags: 8 | unix.MS_RDONLY, Data: "x", CreateTarget: true},
		{Source: "/dev/vdd", Target: "/mnt/b", FSType: "btrfs", CreateTarget: true},
		{Source: "/dev/vdf", Target: "/mnt/external/0", FSType: "btrfs", CreateTarget: true, MakeFS: true, Permissions: 0o777},
	}
	if diff := cmp.Diff(mounts, p.mounts); diff != "" {
		t.Error(diff)
	}
	if p.termina == nil || p.termina.StatefulDevice != "/dev/vdb" {
		t.Errorf("termina %+v", p.termina)
	}
	// The own store is the service's, everything else the caller's.
	if want := []string{"64101 ro " + raw, "64101 rw " + rw, "64101 ro " + q}; !slices.Equal(pl.opener.calls, want) {
		t.Errorf("opened %q, want %q", pl.opener.calls, want)
	}
	if err := p.spec.Check(len(p.files)); err != nil {
		t.Error(err)
	}
	req.UseFdForStorage = true
	p2, err := pl.prepare(req, storage)
	if err != nil {
		t.Fatal(err)
	}
	defer p2.close()
	if p2.termina.StatefulDevice != "/dev/vdf" || len(p2.mounts) != 2 {
		t.Errorf("with use_fd_for_storage: %+v, mounts %v", p2.termina, p2.mounts)
	}
}

// What is refused leaves no descriptor open.
func TestPrepareRefuses(t *testing.T) {
	pl := newPlanner(t)
	store := pl.s.storeDir(alice.Owner)
	if err := os.MkdirAll(filepath.Join(store, "@label"), 0o700); err != nil {
		t.Fatal(err)
	}
	secret := pl.file("secret", "secret")
	if err := os.Symlink(secret, filepath.Join(store, "link.img")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(store, "fifo.img"), 0o600); err != nil {
		t.Fatal(err)
	}
	ro, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	disk := func(d *pb.DiskImage) *pb.StartVmRequest {
		return &pb.StartVmRequest{Name: "x", Disks: []*pb.DiskImage{d}}
	}
	good := &pb.DiskImage{Path: pl.file("good", "good")}
	before := openFiles(t)
	for name, test := range map[string]struct {
		req   *pb.StartVmRequest
		files []*os.File
		want  string
	}{
		"no kernel":                {req: &pb.StartVmRequest{Vm: &pb.VirtualMachineSpec{Kernel: secret}}, want: "bzImage"},
		"a kernel descriptor":      {req: &pb.StartVmRequest{Fds: fdTypes{pb.StartVmRequest_KERNEL}}, files: []*os.File{ro}, want: "of the descriptor"},
		"a missing root":           {req: &pb.StartVmRequest{Vm: &pb.VirtualMachineSpec{Rootfs: "/nowhere"}}, want: "root file system"},
		"a root for reading":       {req: &pb.StartVmRequest{WritableRootfs: true, Fds: fdTypes{pb.StartVmRequest_ROOTFS}}, files: []*os.File{ro}, want: "writing"},
		"storage for reading":      {req: &pb.StartVmRequest{Fds: fdTypes{pb.StartVmRequest_STORAGE}}, files: []*os.File{ro}, want: "writing"},
		"a disk without a path":    {req: disk(&pb.DiskImage{}), want: "disk 0: it has no path"},
		"a mount without a place":  {req: disk(&pb.DiskImage{Path: good.Path, DoMount: true}), want: "mount_point"},
		"another type":             {req: disk(&pb.DiskImage{Path: good.Path, ImageType: pb.DiskImageType_DISK_IMAGE_PLUGINVM}), want: "not supported"},
		"a qcow2 that is none":     {req: disk(&pb.DiskImage{Path: good.Path, ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2}), want: "not a qcow2"},
		"a qcow2 with backing":     {req: disk(&pb.DiskImage{Path: pl.file("b", string(qcow2(3, 200, 7, 0))), ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2}), want: "backing"},
		"the second disk":          {req: &pb.StartVmRequest{Disks: []*pb.DiskImage{good, {Path: "/nowhere"}}}, want: "disk 1"},
		"a link in the store":      {req: disk(&pb.DiskImage{Path: store + "/link.img"}), want: "link.img"},
		"a FIFO in the store":      {req: disk(&pb.DiskImage{Path: store + "/fifo.img"}), want: "not a regular file"},
		"the store itself":         {req: disk(&pb.DiskImage{Path: store + "/."}), want: "not a regular file"},
		"above the store":          {req: disk(&pb.DiskImage{Path: store + "/.."}), want: "cross-device"},
		"a label's store":          {req: disk(&pb.DiskImage{Path: store + "/@label"}), want: "not a regular file"},
		"the store and no name":    {req: disk(&pb.DiskImage{Path: store + "/"}), want: "no such file"},
		"termina without a disk":   {req: &pb.StartVmRequest{StartTermina: true}, want: "CreateDiskImage"},
		"more CPUs than there are": {req: &pb.StartVmRequest{Cpus: hostCPUs() + 1}, want: "CPUs"},
	} {
		test.req.Name = "x"
		p, err := pl.prepare(test.req, test.files...)
		if err == nil {
			p.close()
			t.Errorf("%s was accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	// More memory than there is needs no file.
	total, _ := hostMemory()
	if err := pl.s.ConfigureVm(t.Context(), alice, "x", Settings{MemoryMiB: ptr(total >> 20)}); err != nil {
		t.Fatal(err)
	}
	if _, err := pl.prepare(&pb.StartVmRequest{Name: "x"}); err == nil || !strings.Contains(err.Error(), "stop another VM or set less with ConfigureVm") {
		t.Errorf("all the memory: %v", err)
	}
}

// A network mode of none takes no network, and gives back the one that was
// set aside.
func TestPrepareWithoutNetwork(t *testing.T) {
	pl := newPlanner(t)
	if err := pl.s.ConfigureVm(t.Context(), alice, "x", Settings{Network: ptr(NetworkNone)}); err != nil {
		t.Fatal(err)
	}
	n, err := pl.s.nets.take()
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{key: keyOf(alice.Owner, "x"), id: "abc", cid: 33, net: n}
	p, err := pl.s.prepare(t.Context(), v, alice, &pb.StartVmRequest{Name: "x"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.spec.Network != nil || len(pl.s.nets.used) != 0 || v.info().Ipv4Address != 0 {
		t.Errorf("network %+v, %d used, address %d", p.spec.Network, len(pl.s.nets.used), v.info().Ipv4Address)
	}
}
