package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
	"github.com/auberge-vm/auberge/vsock"
)

// A standIn has vm_cicerone's name and user, and hears what that is told.
type standIn struct {
	*client
	notices chan string // the method's name
	started chan *ciceronepb.NotifyVmStartedRequest
}

func (s *standIn) NotifyVmStarted(b []byte) ([]byte, *godbus.Error) {
	req := new(ciceronepb.NotifyVmStartedRequest)
	if err := proto.Unmarshal(b, req); err != nil {
		return nil, godbus.MakeFailedError(err)
	}
	s.notices <- "started " + req.VmName
	s.started <- req
	return nil, nil
}

func (s *standIn) NotifyVmStopping(b []byte) ([]byte, *godbus.Error) {
	req := new(ciceronepb.NotifyVmStoppingRequest)
	if err := proto.Unmarshal(b, req); err != nil {
		return nil, godbus.MakeFailedError(err)
	}
	s.notices <- "stopping " + req.VmName + " of " + req.OwnerId
	return nil, nil
}

func (s *standIn) NotifyVmStopped(b []byte) ([]byte, *godbus.Error) {
	req := new(ciceronepb.NotifyVmStoppedRequest)
	if err := proto.Unmarshal(b, req); err != nil {
		return nil, godbus.MakeFailedError(err)
	}
	s.notices <- "stopped " + req.VmName + " of " + req.OwnerId
	return nil, nil
}

func (b *bed) standIn() *standIn {
	b.t.Helper()
	s := &standIn{client: b.client(testbed.Cicerone), notices: make(chan string, 100), started: make(chan *ciceronepb.NotifyVmStartedRequest, 100)}
	if err := s.conn.Export(s, dbus.CiceronePath, dbus.CiceroneInterface); err != nil {
		b.t.Fatal(err)
	}
	// The bus may hear a moment later that the one before has gone.
	b.await("the name is free", func() bool {
		reply, err := s.conn.RequestName(dbus.CiceroneName, godbus.NameFlagDoNotQueue)
		if err != nil {
			b.t.Fatal(err)
		}
		return reply == godbus.RequestNameReplyPrimaryOwner
	})
	return s
}

func (s *standIn) expect(want string) {
	s.t.Helper()
	select {
	case got := <-s.notices:
		if got != want {
			s.t.Errorf("it is told %q, not %q", got, want)
		}
	case <-time.After(patience):
		s.t.Fatalf("it is not told %q", want)
	}
}

func (s *standIn) concierge1(method string, args ...any) *godbus.Call {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	return s.object().CallWithContext(ctx, dbus.Concierge1Name+"."+method, 0, args...)
}

// hears takes the endpoints of a VM and has its guest say something at each.
func (s *standIn) hears(alice *client, vm string, cid uint32) {
	s.t.Helper()
	var d map[string]godbus.Variant
	var fds [3]godbus.UnixFD
	if err := s.concierge1("OpenVmEndpoints", cid).Store(&d, &fds[0], &fds[1], &fds[2]); err != nil {
		s.t.Fatal(err)
	}
	passed, _ := d["passed"].Value().(bool)
	for i, port := range []uint32{vsock.PortTremplinListener, vsock.PortCrashListener, vsock.PortContainerListener} {
		f := os.NewFile(uintptr(fds[i]), "endpoint")
		l, err := vsock.ListenerFile(f, vsock.Addr{VM: vm, CID: cid}, port, passed)
		f.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		// The guest's stream waits until it is accepted.
		const say = `socket(my $s, 40, 1, 0); connect($s, pack("SSLLx4", 40, 0, shift, 2)) or die "connect: $!"; syswrite($s, "port " . $ARGV[-1]); close $s; print "said\n";`
		if got := alice.shell(vm).say(fmt.Sprintf("perl -e '%s' %d %d", say, port, port)); got != "said" {
			s.t.Fatalf("the guest says %q", got)
		}
		c, err := l.Accept()
		if err != nil {
			s.t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprintf("port %d", port) {
			s.t.Errorf("port %d hears %q, %v", port, got, err)
		}
		c.Close()
		l.Close()
	}
}

// vm_cicerone is told of VMs with all that it has to know, hears what guests
// say on its ports, and all of that again after either daemon's restart.
func TestWhatCiceroneIsGiven(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	first := b.standIn()
	info := alice.start(&pb.StartVmRequest{Name: "x"})
	cid := uint32(info.Cid)
	check := func(s *standIn) {
		t.Helper()
		s.expect("started x")
		r := <-s.started
		if r.OwnerId != fmt.Sprint(testbed.Alice.UID) || r.Cid != cid || int32(r.Pid) != info.Pid || r.Ipv4Address != info.Ipv4Address ||
			r.Ipv4Address == 0 || r.VmType != appspb.VmType_UNKNOWN || r.ContainerIpv4Subnet != 0 {
			t.Errorf("it is told %v of %v", r, info)
		}
		var list []map[string]godbus.Variant
		if err := s.concierge1("ListVmEndpoints").Store(&list); err != nil || len(list) != 1 || list[0]["cid"].Value() != any(cid) || list[0]["name"].Value() != any("x") {
			t.Errorf("listed are %v, %v", list, err)
		}
		s.hears(alice, "x", cid)
	}
	check(first)
	b.restartConcierge()
	check(first)
	first.conn.Close()
	second := b.standIn()
	check(second)

	var fd godbus.UnixFD
	if err := second.concierge1("ConnectVmVsock", cid, vsock.PortMaitred).Store(&fd); err != nil {
		t.Error(err)
	} else {
		os.NewFile(uintptr(fd), "stream").Close()
	}
	if err := second.concierge1("TremplinReady", cid).Err; err == nil || !strings.Contains(err.Error(), "not started for containers") {
		t.Errorf("a VM without containers: %v", err)
	}
	alice.stop("x")
	second.expect(fmt.Sprintf("stopping x of %d", testbed.Alice.UID))
	second.expect(fmt.Sprintf("stopped x of %d", testbed.Alice.UID))
	b.gone()
}
