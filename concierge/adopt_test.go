package concierge

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// plant makes what a VM has left behind: its directory, and a record where
// text is not empty.
func (b *bed) plant(id, text string) string {
	b.t.Helper()
	dir := filepath.Join(b.cfg.RuntimeDir, "vms", id)
	if err := os.MkdirAll(dir, 0o770); err != nil {
		b.t.Fatal(err)
	}
	if text != "" {
		b.plantRecord(id, text)
	}
	return dir
}

func (b *bed) plantRecord(id, text string) {
	b.t.Helper()
	records := filepath.Join(b.cfg.RuntimeDir, "records")
	if err := os.MkdirAll(records, 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(records, id+".json"), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

const aliceRecord = `{"uid":64101,"name":"NAME","owner":"64101","cid":CID,"state":"running",` +
	`"network":{"subnet":"100.115.128.8/29","gateway":"100.115.128.9","guest":"100.115.128.10","name_server":"100.115.128.11"}}`

func recordText(name, cid string) string {
	return strings.NewReplacer("NAME", name, "CID", cid).Replace(aliceRecord)
}

// listen makes a supervisor's socket on which nobody answers.
func (b *bed) listen(dir string) net.Listener {
	b.t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "control.sock"), Net: "unixpacket"})
	if err != nil {
		b.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	b.t.Cleanup(func() { l.Close() })
	return l
}

// What VMs have left behind that ended, or of which only pieces are there, is
// cleared away, and their owners are told.
func TestAdoptWhatHasEnded(t *testing.T) {
	b := newBed(t)
	b.plant("ended", recordText("ended", "40"))
	dead := b.plant("dead", recordText("dead", "41"))
	b.listen(dead).Close()
	if err := os.WriteFile(filepath.Join(dead, "exit.json"), []byte(`{"reason":"guest","message":"powered off"}`), 0o640); err != nil {
		t.Fatal(err)
	}
	b.plantRecord("nodir", recordText("nodir", "42"))
	nothing := b.plant("norecord", "")
	if err := os.WriteFile(filepath.Join(nothing, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A VM's user has left a trap where its record would be.
	trap := b.plant("trap", recordText("trap", "43"))
	if err := syscall.Mkfifo(filepath.Join(trap, "exit.json"), 0o666); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(secret, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(trap, "link")); err != nil {
		t.Fatal(err)
	}
	done := make(chan *Service, 1)
	go func() { done <- b.serve() }()
	var s *Service
	select {
	case s = <-done:
	case <-time.After(patienceOfTests):
		t.Fatal("the service does not start")
	}
	b.awaitGone(s)
	got := b.events.take()
	slices.Sort(got)
	if want := []string{"VmStopped dead", "VmStopped ended", "VmStopped nodir", "VmStopped trap"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.gone()
	if _, err := os.Stat(filepath.Join(secret, "file")); err != nil {
		t.Errorf("what a link in a VM's directory points to: %v", err)
	}
	if log := b.log.String(); !strings.Contains(log, "powered off") {
		t.Errorf("the exit record was not read: %s", log)
	}
}

// One VM that cannot be taken over is left alone and costs the others nothing.
// A record that cannot be read is no reason to keep what has ended.
func TestAdoptDespiteTrouble(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	good, err := b.small(s, "good")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	b.plant("damaged", "{")
	b.plant("empty", " ")
	b.listen(b.plant("hangs", recordText("hangs", "99")))
	s = b.serve()
	list, err := s.ListVms(t.Context(), alice, &pb.ListVmsRequest{})
	if err != nil || len(list.Vms) != 2 || list.Vms[0].VmInfo.Pid != good.VmInfo.Pid || list.Vms[1].Status != pb.VmStatus_VM_STATUS_FAILURE {
		t.Errorf("found %v, %v", list, err)
	}
	for _, id := range []string{"damaged", "empty", "hangs"} {
		if _, err := os.Stat(filepath.Join(b.cfg.RuntimeDir, "vms", id)); (err == nil) != (id == "hangs") {
			t.Errorf("%s: %v", id, err)
		}
		if !strings.Contains(b.log.String(), "id="+id) {
			t.Errorf("%s was not reported", id)
		}
	}
	// What the VM has that does not answer, no other gets.
	other, err := b.small(s, "other")
	if err != nil {
		t.Fatal(err)
	}
	if other.VmInfo.Cid <= 99 {
		t.Errorf("the new VM has CID %d", other.VmInfo.Cid)
	}
	if n := s.vms[keyOf(alice.Owner, "other")].net; n.Subnet.String() == "100.115.128.8/29" {
		t.Errorf("the new VM has the network %v", n)
	}
	b.stop(s, "good")
	b.stop(s, "other")
}

// Two VMs of one name cannot be: the second one found is left alone.
func TestAdoptTwoOfAName(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.small(s, "y"); err != nil {
		t.Fatal(err)
	}
	x, y := s.vms[keyOf(alice.Owner, "x")], s.vms[keyOf(alice.Owner, "y")]
	s.Close()
	y.key.name = "x"
	if err := s.writeRecord(y, recordRunning); err != nil {
		t.Fatal(err)
	}
	s = b.serve()
	list, err := s.ListVms(t.Context(), alice, &pb.ListVmsRequest{})
	if err != nil || len(list.Vms) != 1 || !strings.Contains(b.log.String(), "same owner and name") {
		t.Errorf("found %v, %v", list, err)
	}
	b.stop(s, "x")
	for _, v := range []*vm{x, y} {
		if m, err := vmm.Attach(t.Context(), v.dir); err == nil {
			if err := m.Stop(t.Context(), "the test is over"); err != nil {
				t.Error(err)
			}
		}
	}
}

// A service started with another vsock transport leaves VMs of the first one
// alone and goes on.
func TestAdoptOtherTransport(t *testing.T) {
	b := newBed(t)
	dir := b.plant("kernel", recordText("kernel", "50"))
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	spec := &vmm.Spec{ID: "kernel", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 16, Kernel: 0, Initrd: vmm.NoFile,
		Vsock: vmm.Vsock{Mode: vsock.ModeKernel, CID: 50}}
	m, err := b.cfg.Launcher.Launch(t.Context(), dir, spec, []*os.File{null})
	if err != nil {
		t.Fatal(err)
	}
	without := newBed(t).serve() // what a service needs without any VM
	before := openFiles(t)
	without.Close()
	s := b.serve()
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before the attempt, %d after", before, after)
	}
	if info, err := s.GetVmInfo(t.Context(), alice, &pb.GetVmInfoRequest{Name: "kernel"}); err != nil || info.VmInfo.Status != pb.VmStatus_VM_STATUS_FAILURE {
		t.Errorf("it was taken over: %v, %v", info, err)
	}
	if log := b.log.String(); !strings.Contains(log, "--vsock kernel") {
		t.Errorf("the log does not say what to do: %s", log)
	}
	select {
	case <-m.Done():
		t.Error("it has ended")
	default:
	}
	if err := m.Stop(t.Context(), "the test is over"); err != nil {
		t.Error(err)
	}
}
