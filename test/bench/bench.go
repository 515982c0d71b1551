package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// callTimeout bounds one call; a guest may boot in it on a slow machine.
const callTimeout = 5 * time.Minute

// A bench is a testbed with the service on it and somebody who uses it.
type bench struct {
	*testbed.Bed
	ctx       context.Context
	user      testbed.User
	conn      *godbus.Conn
	concierge *testbed.Daemon
}

// newBench starts a bus and vm_concierge with the given arguments.
func (o *options) newBench(ctx context.Context, args ...string) (*bench, error) {
	bed, err := testbed.New(ctx, testbed.Options{Bin: o.bin, Image: o.image, Log: o.log,
		Policies: []string{"test/bench/peers.conf"}})
	if err != nil {
		return nil, err
	}
	b := &bench{Bed: bed, ctx: ctx, user: bed.Caller()}
	if b.concierge, err = bed.StartConcierge(ctx, append([]string{"--max-vms", "unlimited"}, args...)...); err != nil {
		b.close()
		return nil, err
	}
	if b.conn, err = bed.Dial(ctx, b.user); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) close() {
	if b.conn != nil {
		b.conn.Close()
	}
	b.Close()
}

func (b *bench) object() godbus.BusObject {
	return b.conn.Object(dbus.ConciergeName, dbus.ConciergePath)
}

// call calls a method of vm_concierge's contract.
func (b *bench) call(method string, req, resp proto.Message) error {
	return b.callOn(dbus.ConciergeName, dbus.ConciergePath, dbus.ConciergeInterface, method, req, resp)
}

func (b *bench) callOn(name, path, iface, method string, req, resp proto.Message) error {
	payload, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
	defer cancel()
	var out []byte
	if err := b.conn.Object(name, godbus.ObjectPath(path)).CallWithContext(ctx, iface+"."+method, 0, payload).Store(&out); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return proto.Unmarshal(out, resp)
}

// start starts a small VM without a disk of its own.
func (b *bench) start(name string) (*pb.VmInfo, error) {
	var resp pb.StartVmResponse
	if err := b.call("StartVm", &pb.StartVmRequest{Name: name}, &resp); err != nil {
		return nil, err
	}
	if !resp.Success {
		return nil, errors.New("StartVm: " + resp.FailureReason)
	}
	return resp.VmInfo, nil
}

func (b *bench) stop(name string) error {
	var resp pb.SuccessFailureResponse
	err := b.call("StopVm", &pb.StopVmRequest{Name: name}, &resp)
	if err == nil && !resp.Success {
		err = errors.New("StopVm: " + resp.FailureReason)
	}
	return err
}

// small has a VM of this name get little of the machine's memory, and so many
// processors; zero leaves it what a user gets who sets nothing.
func (b *bench) small(name string, cpus uint32) error {
	settings := map[string]godbus.Variant{"memory": godbus.MakeVariant(uint64(512))}
	if cpus > 0 {
		settings["cpus"] = godbus.MakeVariant(cpus)
	}
	return b.object().Call(dbus.Concierge1Name+".ConfigureVm", 0, name, "", settings).Err
}

// pss is how much memory a process takes in KiB, what it shares counted in
// proportion.
func pss(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	return parsePSS(string(b))
}

func parsePSS(rollup string) (float64, error) {
	for l := range strings.Lines(rollup) {
		var kib float64
		if n, _ := fmt.Sscanf(l, "Pss: %f kB", &kib); n == 1 {
			return kib, nil
		}
	}
	return 0, errors.New("smaps_rollup tells no Pss")
}

// descriptors counts the open files of a process.
func descriptors(pid int) int {
	e, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(e)
}

// threads counts the threads of a process.
func threads(pid int) int {
	e, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return len(e)
}

// options are the command line's.
type options struct {
	bin, image string
	libvirt    string
	accel      string
	pairs, vms int
	only       string
	crowdDir   string
	kept       *keeper // see there
	log        *os.File
}

// fileLimit is how many files a process may have open.
func fileLimit(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "Max open files"); ok {
			return strings.Fields(rest)[0]
		}
	}
	return "unknown"
}
