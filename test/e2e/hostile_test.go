package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// An attack goes on until ctx ends, in as many goroutines as it likes, and
// counts what it does.
type attack func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64)

// together runs n of f, each with a connection of its own.
func together(ctx context.Context, t *testing.T, b *bed, u testbed.User, n int, f func(c *godbus.Conn)) {
	var wg sync.WaitGroup
	for range n {
		c, err := b.Dial(ctx, u)
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			break
		}
		defer c.Close()
		wg.Go(func() { f(c) })
	}
	wg.Wait()
}

// flood calls a method again and again, with many calls in progress, and waits
// for no answer before the next.
func flood(ctx context.Context, c *godbus.Conn, done *atomic.Int64, iface, member string, args ...any) {
	const inFlight = 128
	answers := make(chan *godbus.Call, inFlight)
	open := 0
	for ctx.Err() == nil {
		c.Object(dbus.ConciergeName, dbus.ConciergePath).GoWithContext(ctx, iface+"."+member, 0, answers, args...)
		done.Add(1)
		if open++; open == inFlight {
			<-answers
			open--
		}
	}
	for ; open > 0; open-- {
		<-answers
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Error(err)
	}
	return b
}

var attacks = map[string]attack{
	// As many match rules as the bus takes, and then on and off.
	"match rules": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		together(ctx, t, b, testbed.Bob, 4, func(c *godbus.Conn) {
			for i := 0; ctx.Err() == nil; i++ {
				rule := fmt.Sprintf("type='signal',sender='%s',arg0='%d'", dbus.ConciergeName, i)
				err := c.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Err
				if err != nil && i > 400 { // no more of them
					old := fmt.Sprintf("type='signal',sender='%s',arg0='%d'", dbus.ConciergeName, i%400)
					c.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.RemoveMatch", 0, old)
				}
				done.Add(1)
			}
		})
	},
	"calls": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		request := marshal(t, &pb.ListVmsRequest{})
		together(ctx, t, b, testbed.Bob, 4, func(c *godbus.Conn) { flood(ctx, c, done, dbus.ConciergeInterface, "ListVms", request) })
	},
	// Each is a question to polkit, whose answer is not kept.
	"calls for other people's VMs": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		request := marshal(t, &pb.ListVmsRequest{OwnerId: itoa(int(testbed.Alice.UID))})
		together(ctx, t, b, testbed.Bob, 4, func(c *godbus.Conn) { flood(ctx, c, done, dbus.ConciergeInterface, "ListVms", request) })
	},
	"calls of somebody without rights": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		together(ctx, t, b, testbed.Dave, 4, func(c *godbus.Conn) { flood(ctx, c, done, dbus.Concierge1Name, "GetState") })
	},
	// Answers that nobody fetches.
	"calls without reading": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		c := b.rawDial(t, testbed.Bob)
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		for serial := uint32(2); ctx.Err() == nil; serial++ {
			if _, err := c.Write(rawMessage(serial, dbus.ConciergePath, "org.freedesktop.DBus.Introspectable", "Introspect", "", nil)); err != nil {
				return
			}
			done.Add(1)
		}
	},
	"long paths and deep variants": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		var deep any = "x"
		for range 30 {
			deep = godbus.MakeVariant(deep)
		}
		settings := map[string]godbus.Variant{"memory": godbus.MakeVariant(deep)}
		long := godbus.ObjectPath("/" + strings.Repeat("a/", 1<<19) + "a")
		together(ctx, t, b, testbed.Bob, 2, func(c *godbus.Conn) {
			for ctx.Err() == nil {
				err := c.Object(dbus.ConciergeName, dbus.ConciergePath).
					CallWithContext(ctx, dbus.Concierge1Name+".ConfigureVm", 0, "x", "", settings).Err
				if name := errorName(err); name != invalidArgs && ctx.Err() == nil {
					t.Errorf("deep variants: %v", err)
				}
				err = c.Object(dbus.ConciergeName, long).
					CallWithContext(ctx, dbus.ConciergeInterface+".ListVms", 0, []byte{}).Err
				if err == nil {
					t.Error("there is an object at the end of a long path")
				}
				done.Add(1)
			}
		})
	},
	"large requests": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		request := make([]byte, 8<<20)
		together(ctx, t, b, testbed.Bob, 2, func(c *godbus.Conn) {
			for ctx.Err() == nil {
				c.Object(dbus.ConciergeName, dbus.ConciergePath).CallWithContext(ctx, dbus.ConciergeInterface+".ListVms", 0, request)
				done.Add(1)
			}
		})
	},
	"descriptors": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		var fds []godbus.UnixFD
		for range 16 {
			fds = append(fds, godbus.UnixFD(f.Fd()))
		}
		request := marshal(t, &pb.StartVmRequest{Name: "x", Vm: &pb.VirtualMachineSpec{Kernel: "/nowhere"}})
		together(ctx, t, b, testbed.Bob, 4, func(c *godbus.Conn) {
			for ctx.Err() == nil {
				// Where they belong and where they do not.
				c.Object(dbus.ConciergeName, dbus.ConciergePath).CallWithContext(ctx, dbus.ConciergeInterface+".StartVm", 0, request, fds)
				c.Object(dbus.ConciergeName, dbus.ConciergePath).CallWithContext(ctx, dbus.ConciergeInterface+".ListVms", 0, request, fds)
				done.Add(1)
			}
		})
	},
	"connections that come and go": func(ctx context.Context, t *testing.T, b *bed, done *atomic.Int64) {
		for ctx.Err() == nil {
			together(ctx, t, b, testbed.Bob, 8, func(c *godbus.Conn) {
				c.Object(dbus.ConciergeName, dbus.ConciergePath).GoWithContext(ctx, dbus.Concierge1Name+".Subscribe", 0, make(chan *godbus.Call, 1))
				done.Add(1)
			})
		}
	},
}

// rawDial is a connection of a user's that has said Hello and is read no more.
func (b *bed) rawDial(t *testing.T, u testbed.User) net.Conn {
	t.Helper()
	c, err := b.DialSocket(u)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	fmt.Fprintf(c, "\x00AUTH EXTERNAL %x\r\n", strconv.FormatUint(uint64(u.UID), 10))
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK") {
		t.Fatal(line, err)
	}
	fmt.Fprint(c, "BEGIN\r\n")
	hello := rawMessage(1, "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", "org.freedesktop.DBus", nil)
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	return c
}

// rawMessage is a method call without arguments, to the concierge unless dest
// says otherwise.
func rawMessage(serial uint32, path, iface, member, dest string, body []byte) []byte {
	if dest == "" {
		dest = dbus.ConciergeName
	}
	b := []byte{'l', 1, 0, 1}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = binary.LittleEndian.AppendUint32(b, serial)
	b = binary.LittleEndian.AppendUint32(b, 0)
	for _, f := range []struct {
		code, typ byte
		value     string
	}{{1, 'o', path}, {2, 's', iface}, {3, 's', member}, {6, 's', dest}} {
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		b = append(b, f.code, 1, f.typ, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(f.value)))
		b = append(append(b, f.value...), 0)
	}
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)-16))
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return append(b, body...)
}

// served checks that alice is, on a connection that she has and on a new one.
func (c *client) served(t *testing.T) {
	t.Helper()
	for _, c := range []*client{c, c.bed.client(c.user)} {
		var list pb.ListVmDisksSeedResponse
		if err := c.call("ListVmDisks", &pb.ListVmDisksRequest{}, &list); err != nil || len(list.Images) != 1 {
			t.Errorf("alice is not served: %v, %v", &list, err)
		}
		if err := c.own("Subscribe").Err; err != nil {
			t.Errorf("alice is not served: %v", err)
		}
	}
}

// descriptorsOf counts the open files of a process.
func descriptorsOf(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// memoryOf is the resident memory of a process in MiB.
func memoryOf(t *testing.T, pid int) int {
	t.Helper()
	for _, line := range statusLines(t, pid) {
		if line[0] == "VmRSS:" {
			kib, err := strconv.Atoi(line[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// Whatever a user sends, everybody else is served meanwhile, and the service
// is what it was afterwards: the same process with as many open files, which
// never took much memory.
func TestHostileTraffic(t *testing.T) {
	b, _ := newPolkitBed(t)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}, &disk)
	alice.served(t)
	pid := b.concierge.Cmd.Process.Pid
	files := descriptorsOf(t, pid)
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var done atomic.Int64
			var attacking sync.WaitGroup
			attacking.Go(func() { attack(ctx, t, b, &done) })
			b.await("wait until the attack is on", func() bool { return done.Load() > 0 || t.Failed() })
			for range 3 {
				alice.served(t)
			}
			if mib := memoryOf(t, pid); mib > 300 {
				t.Errorf("the service takes %d MiB", mib)
			}
			stop()
			attacking.Wait()
			t.Logf("alice was served during %d attempts", done.Load())
			alice.served(t)
			b.await("the service to close what came with the attack", func() bool { return descriptorsOf(t, pid) <= files+2 })
		})
	}
	if unix.Kill(pid, 0) != nil {
		t.Error("the service has ended")
	}
	b.gone()
}

// A thousand connections of several users, all of which the service has to
// know, delay nobody's answer for good.
func TestAThousandConnections(t *testing.T) {
	b, _ := newPolkitBed(t)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}, &disk)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 1000 {
		u := []testbed.User{testbed.Bob, testbed.Carol, testbed.Dave, testbed.Peer, testbed.Root}[i%5]
		c := b.rawDial(t, u)
		conns = append(conns, c)
		if _, err := c.Write(rawMessage(2, dbus.ConciergePath, dbus.Concierge1Name, "GetState", "", nil)); err != nil {
			t.Fatal(err)
		}
		if i%250 == 0 {
			alice.served(t)
		}
	}
	alice.served(t)
	// Signals go out to all who may hear them, and find hers among them.
	ear := alice.listen()
	alice.bare("StopAllVms")
	ear.silent(alice)
	if mib := memoryOf(t, b.concierge.Cmd.Process.Pid); mib > 300 {
		t.Errorf("the service takes %d MiB", mib)
	}
	for _, c := range conns {
		c.Close()
	}
	conns = nil
	alice.served(t)
	b.gone()
}
