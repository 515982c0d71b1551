package vsh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// The cicerone on the bus.
const (
	ciceroneName = "org.chromium.VmCicerone"
	ciceronePath = "/org/chromium/VmCicerone"
)

const (
	// findTime bounds the calls before the session.
	findTime = 60 * time.Second
	// acceptTime is how long the container's vshd has to dial. A program's
	// start takes an emulated guest seconds when its host is busy.
	acceptTime = 30 * time.Second
	// clearTime bounds what is done after the session.
	clearTime = 5 * time.Second
)

// RunInContainer runs a session in a container of a VM as Run does in the VM
// itself: the concierge gives us a socket to which that VM alone has access,
// and the container's agent starts a vshd that dials it. An empty owner is the
// caller. What goes wrong before the session comes with ExitLost. The
// connection to the bus has to last for the session.
func RunInContainer(ctx context.Context, conn *dbus.Conn, vm, container, owner string, opts *Options) (int, error) {
	c := &target{conn: conn, vm: vm, name: container, owner: owner}
	find, cancel := context.WithTimeoutCause(ctx, findTime, fmt.Errorf("no answer from the services within %v", findTime))
	defer cancel()
	o := *opts
	o.Target = container
	if o.CwdPID != 0 {
		o.CwdPID = c.shellOf(find, o.CwdPID)
	}
	stream, err := c.dial(find)
	if err != nil {
		return ExitLost, fmt.Errorf("cannot connect to container %q of VM %q: %w", container, vm, err)
	}
	// Whoever shows terminals asks for the shell behind a vsh, to open the
	// next one where that shell is.
	var registering sync.WaitGroup
	clear := false
	o.Started = func(pid int32) {
		if clear = pid > 0; !clear {
			return // a command that could not be run
		}
		registering.Go(func() {
			limit, cancel := context.WithTimeout(ctx, findTime)
			defer cancel()
			c.register(limit, pid) // a shell works without it
		})
	}
	code, err := Run(ctx, stream, &o)
	if clear {
		registering.Wait()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTime)
		defer cancel()
		c.register(limit, 0)
	}
	return code, err
}

// A target is a container that somebody wants a session in.
type target struct {
	conn            *dbus.Conn
	vm, name, owner string
}

// dial has a vshd started in the container and accepts its stream.
func (c *target) dial(ctx context.Context) (net.Conn, error) {
	var fd dbus.UnixFD
	var port uint32
	call := bus.Call(ctx, c.conn, conciergeName, conciergePath, concierge1, "ListenVsock", c.vm, c.owner, uint32(0))
	if err := call.Store(&fd, &port); err != nil {
		err = explain(ctx, err)
		if strings.Contains(err.Error(), "kernel vsock") { // no name on the bus tells it
			err = fmt.Errorf("%w: shells in containers need vsock = user in the configuration of vm_concierge", err)
		}
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "vsh-listener")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("the concierge gave no usable socket: %w", err)
	}
	defer l.Close()
	var resp ciceronepb.LaunchVshdResponse
	err = c.call(ctx, "LaunchVshd", &ciceronepb.LaunchVshdRequest{VmName: c.vm, ContainerName: c.name, OwnerId: c.owner, Port: port}, &resp)
	switch {
	case err != nil:
		return nil, err
	// A success may come with a reason: the VM is there, its container's agent
	// has failed.
	case !resp.Success || resp.FailureReason != "":
		return nil, errors.New(printable(orNone(resp.FailureReason)))
	}
	return accept(ctx, l)
}

func orNone(reason string) string {
	if reason == "" {
		return "no reason was given"
	}
	return reason
}

func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, acceptTime, fmt.Errorf("the shell server in the container did not dial within %v", acceptTime))
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	stream, err := l.Accept()
	if ctx.Err() != nil {
		if err == nil {
			stream.Close()
		}
		return nil, context.Cause(ctx)
	}
	return stream, err
}

// call calls a method of the cicerone.
func (c *target) call(ctx context.Context, method string, req, resp proto.Message) error {
	payload, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	var answer []byte
	call := bus.Call(ctx, c.conn, ciceroneName, ciceronePath, ciceroneName, method, payload)
	if err := call.Store(&answer); err != nil {
		var e dbus.Error
		if errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner") {
			return errors.New("vm_cicerone is not running on this bus")
		}
		return explain(ctx, err)
	}
	return proto.Unmarshal(answer, resp)
}

// register says which process in the container this process runs, 0 that it
// has ended.
func (c *target) register(ctx context.Context, pid int32) error {
	return c.call(ctx, "RegisterVshSession", &ciceronepb.RegisterVshSessionRequest{VmName: c.vm, ContainerName: c.name, OwnerId: c.owner,
		HostVshPid: int32(os.Getpid()), ContainerShellPid: pid}, &ciceronepb.RegisterVshSessionResponse{})
}

// shellOf is the process in the container that a vsh of this machine runs, for
// the process number of such a vsh; any other number is one of the container's.
func (c *target) shellOf(ctx context.Context, pid int32) int32 {
	var resp ciceronepb.GetVshSessionResponse
	err := c.call(ctx, "GetVshSession", &ciceronepb.GetVshSessionRequest{VmName: c.vm, ContainerName: c.name, OwnerId: c.owner, HostVshPid: pid}, &resp)
	if err == nil && resp.Success && resp.ContainerShellPid > 0 {
		return resp.ContainerShellPid
	}
	return pid
}
