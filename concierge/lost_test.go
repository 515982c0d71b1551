package concierge

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// await looks for something that nothing announces.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(patienceOfTests)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in vain: %s", what)
		}
	}
}

// changesOf checks what became of a VM, by what its owner was told.
func (b *bed) changesOf(name string, want ...string) {
	b.t.Helper()
	var got []string
	await(b.t, fmt.Sprintf("that VM %q is told to be %s", name, want), func() bool {
		got = nil
		b.events.mu.Lock()
		defer b.events.mu.Unlock()
		for _, c := range b.events.changes {
			if c.signal == vmChanged && c.what["name"] == name {
				got = append(got, c.what["status"].(string))
			}
		}
		return len(got) >= len(want) && slices.Equal(got[len(got)-len(want):], want)
	})
}

// endProcesses kills what a test that failed has left running of its VMs in
// the bed at dir.
func endProcesses(t *testing.T, dir string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		cwd, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(cwd, dir+"/run/vms/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err != nil {
			t.Fatal(err)
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// withDisk is a request for a VM that writes to a disk.
func withDisk(name, disk string) *pb.StartVmRequest {
	return &pb.StartVmRequest{Name: name, Disks: []*pb.DiskImage{{Path: disk, Writable: true}}}
}

// lost leaves a VM whose supervisor does not answer to a new service.
func (b *bed) lost(disk string) (s *Service, first *pb.VmInfo, supervisor int) {
	b.t.Helper()
	s = b.serve()
	memory := uint64(minMemoryMiB)
	for _, name := range []string{"lost", "good", "thief"} {
		if err := s.ConfigureVm(b.t.Context(), alice, name, Settings{MemoryMiB: &memory}); err != nil {
			b.t.Fatal(err)
		}
	}
	resp, err := s.StartVm(b.t.Context(), alice, withDisk("lost", disk), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.small(s, "good"); err != nil {
		b.t.Fatal(err)
	}
	supervisor = s.vms[keyOf(alice.Owner, "lost")].processes.Supervisor.PID
	s.Close()
	b.events.take()
	if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { syscall.Kill(supervisor, syscall.SIGCONT) })
	return b.serve(), resp.VmInfo, supervisor
}

func (b *bed) disk() string {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

func (b *bed) status(s *Service, name string) *pb.VmInfo {
	b.t.Helper()
	r, err := s.GetVmInfo(b.t.Context(), alice, &pb.GetVmInfoRequest{Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return r.VmInfo
}

// A VM that runs but does not answer keeps all that it has, is seen, and is
// there again when it answers.
func TestLostAndFound(t *testing.T) {
	b := newBed(t)
	disk := b.disk()
	s, first, supervisor := b.lost(disk)
	if i := b.status(s, "lost"); i.Status != pb.VmStatus_VM_STATUS_FAILURE || i.Pid != first.Pid || i.Cid != first.Cid || i.Ipv4Address != first.Ipv4Address {
		t.Errorf("the lost VM is %v, was %v", i, first)
	}
	if st, err := s.GetState(t.Context(), alice); err != nil || len(st.VMs) != 2 || st.VMs[1]["status"] != "lost" ||
		!strings.Contains(fmt.Sprint(st.VMs[1]["reason"]), "cannot be taken over") {
		t.Errorf("the state is %v, %v", st, err)
	}
	if i := b.status(s, "good"); i.Status != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("the good one is %v", i)
	}
	if _, err := b.small(s, "lost"); err == nil || !strings.Contains(err.Error(), "cannot be taken over") {
		t.Errorf("started again: %v", err)
	}
	if _, err := s.StartVm(t.Context(), alice, withDisk("thief", disk), nil); err == nil || !strings.Contains(err.Error(), `in use by VM "lost"`) {
		t.Errorf("its disk is given away: %v", err)
	}
	if _, err := s.ConnectVsock(t.Context(), alice, "lost", 8888); err == nil {
		t.Error("there is a way to it")
	}
	if err := syscall.Kill(supervisor, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, "find the VM again", func() bool { return b.status(s, "lost").Status == pb.VmStatus_VM_STATUS_RUNNING })
	if again, err := b.small(s, "lost"); err != nil || again.VmInfo.Pid != first.Pid {
		t.Errorf("found %v, %v", again, err)
	}
	b.stop(s, "lost")
	b.stop(s, "good")
	if got, want := b.events.take(), []string{"VmStopping lost", "VmStopped lost", "VmStopping good", "VmStopped good"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.gone()
	if resp, err := s.StartVm(t.Context(), alice, withDisk("thief", disk), nil); err != nil {
		t.Errorf("the disk of a VM that has gone: %v, %v", resp, err)
	}
	b.stop(s, "thief")
}

// A VM that does not answer can be ended all the same.
func TestLostAndStopped(t *testing.T) {
	b := newBed(t)
	s, first, _ := b.lost(b.disk())
	b.stop(s, "lost")
	// Nobody may have taken note of its end yet.
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", first.Pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("its hypervisor: %s", stat)
	}
	if got, want := b.events.take(), []string{"VmStopping lost", "VmStopped lost"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.changesOf("lost", "stopping", "stopped")
	b.stop(s, "good")
	b.gone()
}

// Supervisors whose sockets were exchanged are not taken for each other's VMs.
func TestSocketsExchanged(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	var sockets []string
	for _, name := range []string{"a", "b"} {
		if _, err := b.small(s, name); err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, filepath.Join(s.vms[keyOf(alice.Owner, name)].dir, "control.sock"))
	}
	s.Close()
	b.events.take()
	for _, move := range [][2]string{{sockets[0], sockets[0] + "x"}, {sockets[1], sockets[0]}, {sockets[0] + "x", sockets[1]}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	s = b.serve()
	for _, name := range []string{"a", "b"} {
		if i := b.status(s, name); i.Status != pb.VmStatus_VM_STATUS_FAILURE {
			t.Errorf("VM %s is %v", name, i)
		}
	}
	if err := os.Rename(sockets[0], sockets[0]+"x"); err != nil {
		t.Fatal(err)
	}
	b.stop(s, "b")
	b.stop(s, "a")
	if got, want := b.events.take(), []string{"VmStopping b", "VmStopped b", "VmStopping a", "VmStopped a"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.gone()
}

// A VM that ends while it is lost is told of as any other.
func TestLostAndEnded(t *testing.T) {
	b := newBed(t)
	s, _, supervisor := b.lost(b.disk())
	if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "learn that it has ended", func() bool { return slices.Contains(b.events.take(), "VmStopped lost") })
	b.stop(s, "good")
	b.awaitGone(s)
	b.gone()
}

// Two VMs cannot write to one disk, nor can one read what another writes.
func TestDisksInUse(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	disk := b.disk()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Link(disk, link); err != nil {
		link = disk
	}
	memory := uint64(minMemoryMiB)
	for _, name := range []string{"a", "b"} {
		if err := s.ConfigureVm(t.Context(), alice, name, Settings{MemoryMiB: &memory}); err != nil {
			t.Fatal(err)
		}
	}
	start := func(name string, disks ...*pb.DiskImage) error {
		_, err := s.StartVm(t.Context(), alice, &pb.StartVmRequest{Name: name, Disks: disks}, nil)
		return err
	}
	reads, writes := &pb.DiskImage{Path: disk}, &pb.DiskImage{Path: link, Writable: true}
	if err := start("a", reads, writes); err == nil || !strings.Contains(err.Error(), "named twice") {
		t.Errorf("a disk twice: %v", err)
	}
	if err := start("a", writes); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*pb.DiskImage{reads, writes} {
		if err := start("b", d); err == nil || !strings.Contains(err.Error(), `in use by VM "a"`) {
			t.Errorf("a disk that is written to: %v", err)
		}
	}
	b.stop(s, "a")
	if err := start("a", reads); err != nil {
		t.Error(err)
	}
	if err := start("b", reads); err != nil {
		t.Errorf("a disk that both read: %v", err)
	}
	b.stop(s, "a")
	b.stop(s, "b")
	b.gone()
}

// A VM whose record is damaged runs on, and what it has no other gets.
func TestDamagedRecordOfARunningVM(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	v := s.vms[keyOf(alice.Owner, "x")]
	pid := int(b.status(s, "x").Pid)
	s.Close()
	for _, text := range []string{"", "{}", "\x00\x00", `{"name":7}`} {
		b.plantRecord(v.id, text)
		s = b.serve()
		if err := syscall.Kill(pid, 0); err != nil {
			t.Fatalf("with the record %q: %v", text, err)
		}
		if !strings.Contains(b.log.String(), s.recordPath(v.id)) {
			t.Error("the log does not name the record")
		}
		other, err := b.small(s, "other")
		if err != nil || other.VmInfo.Cid <= int64(v.cid) {
			t.Errorf("with the record %q, another VM: %v, %v", text, other, err)
		}
		if n := s.vms[keyOf(alice.Owner, "other")].net; n.Subnet == v.net.Subnet {
			t.Errorf("with the record %q, another VM has the network %v", text, n)
		}
		b.stop(s, "other")
		s.Close()
	}
	if err := v.processes.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.serve()
	b.gone()
}

// What was being written when a service was killed is swept away, and nothing
// else.
func TestSweep(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	cpus := uint32(1)
	if err := s.ConfigureVm(t.Context(), alice, "x", Settings{CPUs: &cpus}); err != nil {
		t.Fatal(err)
	}
	kept := s.settingsPath(keyOf(alice.Owner, "x"))
	s.Close()
	left := []string{filepath.Join(filepath.Dir(kept), ".eA==.json123"), filepath.Join(b.cfg.RuntimeDir, "records", ".abc.json456")}
	for _, path := range left {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.serve()
	for _, path := range left {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	b.gone()
}
