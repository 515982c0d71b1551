package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// descriptors counts a process's open files.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	d, err := os.ReadDir("/proc/" + itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// A thousand connections to the bus, more than one user may have, cost the
// service nothing that lasts and other users nothing at all.
func TestThousandConnections(t *testing.T) {
	// The bus needs as many descriptors and inherits the limit.
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	alice.call("GetVmInfo", &pb.GetVmInfoRequest{Name: "x"}, &pb.GetVmInfoResponse{})
	before := descriptors(t, b.concierge.Cmd.Process.Pid)
	var conns []*godbus.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	refused := 0
	dial := func(u testbed.User, n int) {
		for range n {
			c, err := b.Dial(t.Context(), u)
			if err != nil {
				refused++
				continue
			}
			conns = append(conns, c)
			if err := c.Object(dbus.ConciergeName, dbus.ConciergePath).Call(dbus.ConciergeInterface+".GetVmInfo", 0, []byte("\x0a\x01x")).Err; err != nil {
				t.Fatal(err)
			}
		}
	}
	dial(testbed.Alice, 300)
	if refused == 0 {
		t.Error("alice has 300 connections")
	}
	// More users are needed than the bed has: those of every Debian.
	for _, u := range []testbed.User{{Name: "daemon", UID: 1, GID: 1}, {Name: "bin", UID: 2, GID: 2}, {Name: "sys", UID: 3, GID: 3}} {
		dial(u, 250)
	}
	if len(conns) < 1000 {
		t.Fatalf("there are only %d connections", len(conns))
	}
	var list pb.ListVmsResponse
	if bob.must("ListVms", &pb.ListVmsRequest{}, &list); !list.Success {
		t.Errorf("bob: %v", &list)
	}
	// All at once, too.
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			if err := c.Object(dbus.ConciergeName, dbus.ConciergePath).Call(dbus.ConciergeInterface+".ListVms", 0, []byte{}).Err; err != nil {
				t.Error(err)
			}
		})
	}
	bob.must("ListVms", &pb.ListVmsRequest{}, &list)
	wg.Wait()
	if after := descriptors(t, b.concierge.Cmd.Process.Pid); after > before+8 {
		t.Errorf("the service had %d descriptors and has %d", before, after)
	}
	t.Logf("%d connections, %d were refused", len(conns), refused)
}

// dialer opens streams to a port of the host and keeps them. Perl is in every
// Debian, and the structure is sockaddr_vm.
const dialer = `socket(my $probe, 40, 1, 0) or die "socket: $!";
my ($port, $n, $ok, @keep) = (shift, shift, 0);
for (1..$n) { socket(my $s, 40, 1, 0) or last; $ok++ if connect($s, pack("SSLLx4", 40, 0, $port, 2)); push @keep, $s; }
print "$ok\n"; $| = 1; sleep 1000 if shift;`

// A guest that dials the host a thousand times and says nothing keeps a few
// streams of its own, and nobody else from anything.
func TestGuestThatDialsAThousandTimes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	bad := alice.start(&pb.StartVmRequest{Name: "bad"})
	before := descriptors(t, b.concierge.Cmd.Process.Pid)
	kept := alice.shell("bad")
	for _, port := range []int{7777, 8889, 9999} {
		got := kept.say(fmt.Sprintf("perl -e '%s' %d 1000", strings.ReplaceAll(dialer, "\n", " "), port))
		t.Logf("port %d: %s streams", port, got)
	}
	// Once more, and they stay.
	hold := alice.shell("bad")
	hold.in.Write([]byte("perl -e '" + strings.ReplaceAll(dialer, "\n", " ") + "' 7777 1000 stay\n"))
	hold.out.Scan()
	t.Logf("held: %s streams", hold.out.Text())
	if after := descriptors(t, b.concierge.Cmd.Process.Pid); after > before+64 {
		t.Errorf("the service had %d descriptors and has %d", before, after)
	}
	if i := alice.info("bad"); i.GetPid() != bad.Pid {
		t.Errorf("the VM is %v", i)
	}
	good := alice.start(&pb.StartVmRequest{Name: "good"})
	if got := alice.vsh("good", "echo", "here"); got != "here" {
		t.Errorf("another VM says %q", got)
	}
	// A service that is started meanwhile finds both.
	b.restartConcierge()
	if i := alice.info("bad"); i.GetPid() != bad.Pid || i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("the VM is %v", i)
	}
	if i := alice.info("good"); i.GetPid() != good.Pid || i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("the other VM is %v", i)
	}
	alice.stop("bad")
	alice.stop("good")
	b.gone()
}

// A hypervisor that is stopped answers neither the guest's streams nor its
// monitor. Its VM can be ended all the same, and others do not wait for it.
func TestHypervisorThatIgnoresItsMonitor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	stuck := alice.start(&pb.StartVmRequest{Name: "stuck"})
	good := alice.start(&pb.StartVmRequest{Name: "good"})
	if err := syscall.Kill(int(stuck.Pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ear := alice.listen()
	stopped := make(chan *pb.SuccessFailureResponse, 1)
	go func() {
		var resp pb.SuccessFailureResponse
		alice.call("StopVm", &pb.StopVmRequest{Name: "stuck"}, &resp)
		stopped <- &resp
	}()
	ear.expect("stuck", "VmStopping")
	if i := alice.info("stuck"); i.GetPid() != stuck.Pid {
		t.Errorf("the VM that ignores everything is %v", i)
	}
	if i := alice.info("good"); i.GetPid() != good.Pid {
		t.Errorf("the other VM is %v", i)
	}
	alice.stop("good")
	ear.expect("good", "VmStopping", "VmStopped")
	if resp := <-stopped; !resp.Success {
		t.Errorf("StopVm: %v", resp)
	}
	ear.expect("stuck", "VmStopped")
	b.gone()
}

// A VM that thinks it is another century is served as any other, and told the
// time when that is asked for.
func TestGuestClockFarOff(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	for _, when := range []string{"2096-01-01", "1999-01-01"} {
		alice.rootShell("x", "date -s "+when)
		if got := alice.vsh("x", "echo", "here"); got != "here" {
			t.Errorf("in %s the VM says %q", when, got)
		}
		if i := alice.info("x"); i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
			t.Errorf("in %s the VM is %v", when, i)
		}
	}
	b.restartConcierge()
	if err := alice.object().Call(dbus.ConciergeInterface+".SyncVmTimes", 0).Err; err != nil {
		t.Errorf("SyncVmTimes: %v", err)
	}
	if got, want := alice.vsh("x", "date", "-u", "+%Y"), time.Now().UTC().Format("2006"); got != want {
		t.Errorf("after SyncVmTimes it is %s in the VM, %s on the host", got, want)
	}
	alice.rootShell("x", "date -s 1999-01-01")
	alice.stop("x")
	b.gone()
}
