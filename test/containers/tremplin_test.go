package containers

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/test/testbed"
	"github.com/auberge-vm/auberge/vsock"
)

// dial opens a stream to a port of the VM, as its owner can.
func (v *imageVM) dial(ctx context.Context, port uint32) (net.Conn, error) {
	bus, err := v.bed.Dial(ctx, testbed.Alice)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	var fd godbus.UnixFD
	if err := bus.Object(dbus.ConciergeName, dbus.ConciergePath).CallWithContext(ctx, dbus.Concierge1Name+".ConnectVsock", 0,
		"termina", "", port).Store(&fd); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "stream")
	defer f.Close()
	return net.FileConn(f)
}

// tremplin calls the agent in the VM.
func (v *imageVM) tremplin() pb.TremplinClient {
	v.t.Helper()
	conn, err := grpc.NewClient("passthrough:///tremplin", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return v.dial(ctx, vsock.PortTremplin) }))
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { conn.Close() })
	return pb.NewTremplinClient(conn)
}

// until asks again and again.
func (v *imageVM) until(what string, done func(context.Context) bool) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), imageStep)
	defer cancel()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for !done(ctx) {
		select {
		case <-again.C:
		case <-ctx.Done():
			v.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// The containers' agent alone, whom no cicerone hears: from nothing to a
// container that runs with its user, its token and an address, and back.
func TestTremplin(t *testing.T) {
	v := newImageVM(t)
	c := v.tremplin()
	ctx, cancel := context.WithTimeout(t.Context(), 2*imageStep)
	defer cancel()
	if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "penguin"}, grpc.WaitForReady(true)); err != nil || r.Status != pb.CreateContainerResponse_CREATING {
		t.Fatalf("create: %v, %v", r, err)
	}
	v.until("the container is created", func(ctx context.Context) bool {
		i, err := c.GetContainerInfo(ctx, &pb.GetContainerInfoRequest{ContainerName: "penguin"})
		return err == nil && i.Status == pb.GetContainerInfoResponse_STOPPED
	})
	v.until("the user is set up", func(ctx context.Context) bool {
		r, err := c.SetUpUser(ctx, &pb.SetUpUserRequest{ContainerName: "penguin", ContainerUsername: "pip"})
		if err == nil && r.Status == pb.SetUpUserResponse_FAILED {
			t.Log(r.FailureReason) // the creation has not quite ended
		}
		return err == nil && r.Status != pb.SetUpUserResponse_FAILED && r.Username == "pip"
	})
	const token = "01234567-89ab-cdef-0123-456789abcdef"
	r, err := c.StartContainer(ctx, &pb.StartContainerRequest{ContainerName: "penguin", Token: token})
	if err != nil || r.Status != pb.StartContainerResponse_STARTING || r.OsRelease.GetId() != "debian" {
		t.Fatalf("start: %v, %v", r, err)
	}
	var address netip.Addr
	v.until("the container has an address", func(ctx context.Context) bool {
		i, err := c.GetContainerInfo(ctx, &pb.GetContainerInfoRequest{ContainerName: "penguin"})
		if err != nil || i.Status == pb.GetContainerInfoResponse_FAILED {
			t.Fatalf("info: %v, %v", i, err)
		}
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], i.Ipv4Address)
		address = netip.AddrFrom4(b)
		return i.Status == pb.GetContainerInfoResponse_RUNNING && i.Ipv4Address != 0
	})
	v.root("ping -c1 -W60 " + address.String())
	// The client says more at its first use.
	if got := v.inside("cat /dev/.container_token"); !strings.HasSuffix(got, token) {
		t.Errorf("the container's token is %q", got)
	}
	if got := v.inside("hostname"); got != "penguin" {
		t.Errorf("the container is called %q", got)
	}
	if got := v.inside("until test -S /run/user/1000/systemd/private; do sleep 0.2; done; id -un 1000; id -Gn 1000"); !strings.HasPrefix(got, "pip\n") || !strings.Contains(got, "sudo") {
		t.Errorf("the container's user is %q", got)
	}
	if r, err := c.GetContainerUsername(ctx, &pb.GetContainerUsernameRequest{ContainerName: "penguin"}); err != nil || r.Username != "pip" || r.Homedir != "/home/pip" {
		t.Errorf("the user is %v, %v", r, err)
	}
	if r, err := c.SetTimezone(ctx, &pb.SetTimezoneRequest{TimezoneName: "Europe/Paris", PosixTzString: "CET-1CEST"}); err != nil || r.Successes != 1 {
		t.Errorf("time zone: %v, %v", r, err)
	}
	if r, err := c.StopContainer(ctx, &pb.StopContainerRequest{ContainerName: "penguin"}); err != nil || r.Status != pb.StopContainerResponse_STOPPING {
		t.Errorf("stop: %v, %v", r, err)
	}
	v.until("the container has stopped", func(ctx context.Context) bool {
		i, err := c.GetContainerInfo(ctx, &pb.GetContainerInfoRequest{ContainerName: "penguin"})
		return err == nil && i.Status == pb.GetContainerInfoResponse_STOPPED
	})
	v.until("the deletion began", func(ctx context.Context) bool {
		r, err := c.DeleteContainer(ctx, &pb.DeleteContainerRequest{ContainerName: "penguin"})
		return err == nil && r.Status == pb.DeleteContainerResponse_DELETING
	})
	v.until("the container is gone", func(ctx context.Context) bool {
		i, err := c.GetContainerInfo(ctx, &pb.GetContainerInfoRequest{ContainerName: "penguin"})
		return err == nil && i.Status == pb.GetContainerInfoResponse_NOT_FOUND
	})
}
