package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

const (
	// icons is how many icons are asked for at once, iconSize how large each
	// of them is.
	icons    = 8
	iconSize = 8 << 10
	// relayed is over how many calls into a guest a median is taken.
	relayed = 30
)

// benchRelay measures what a call to a container costs by way of the bus and
// vm_cicerone, against the same agent called by gRPC over the same vsock.
func benchRelay(ctx context.Context, o *options, t *table) error {
	k, err := o.keeper(ctx)
	if err != nil {
		return err
	}
	if err := k.running(); err != nil {
		return err
	}
	ids, err := k.putIcons()
	if err != nil {
		return err
	}
	agent, hangUp, err := k.agent()
	if err != nil {
		return err
	}
	defer hangUp()

	running, err := proto.Marshal(&ciceronepb.IsContainerRunningRequest{VmName: termina, ContainerName: ours})
	if err != nil {
		return err
	}
	var reply []byte
	object := k.conn.Object(dbus.CiceroneName, dbus.CiceronePath)
	p, err := compare(ctx, o.pairs, p50of(relayed, func() error {
		return object.Call(dbus.CiceroneInterface+".IsContainerRunning", 0, running).Store(&reply)
	}), p50of(relayed, func() error {
		_, err := agent.GetGarconSessionInfo(ctx, &containerpb.GetGarconSessionInfoRequest{})
		return err
	}))
	if err != nil {
		return err
	}
	t.ratio("IsContainerRunning, p50", "gRPC by vsock, the agent's smallest call", "us", p, none)

	// godbus would take byte after byte of the answer; see rawClient.
	raw, err := k.dialRaw()
	if err != nil {
		return err
	}
	defer raw.conn.Close()
	wanted, err := proto.Marshal(&ciceronepb.ContainerAppIconRequest{VmName: termina, ContainerName: ours,
		DesktopFileIds: ids, Size: 48, Scale: 1})
	if err != nil {
		return err
	}
	if p, err = compare(ctx, o.pairs, p50of(relayed, func() error {
		size, err := raw.call(dbus.CiceroneName, dbus.CiceronePath, dbus.CiceroneInterface, "GetContainerAppIcon", wanted)
		if err == nil && size < icons*iconSize {
			err = fmt.Errorf("the icons have %d bytes", size)
		}
		return err
	}), p50of(relayed, func() error {
		r, err := agent.GetIcon(ctx, &containerpb.IconRequest{DesktopFileIds: ids, IconSize: 48, Scale: 1})
		if err == nil && len(r.DesktopIcons) != icons {
			err = fmt.Errorf("%d icons of %d", len(r.DesktopIcons), icons)
		}
		return err
	})); err != nil {
		return err
	}
	t.ratio(fmt.Sprintf("GetContainerAppIcon, %d icons of %d KiB, p50", icons, iconSize>>10), "gRPC by vsock, the agent's GetIcon", "us", p, none)
	return nil
}

// putIcons makes applications with icons in our container, and returns their ids.
func (k *keeper) putIcons() (ids []string, err error) {
	cmd := k.Command(k.user, "vsh", termina, ours, "--", "bash", "-es")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
mkdir -p ~/.local/share/applications ~/.local/share/icons
for i in $(seq %d); do
	{ printf '\211PNG\r\n\032\n'; head -c %d /dev/zero; } >~/.local/share/icons/bench$i.png
	printf '[Desktop Entry]\nType=Application\nName=Bench %%s\nExec=true\nIcon=%%s\n' $i ~/.local/share/icons/bench$i.png >~/.local/share/applications/bench$i.desktop
done`, icons, iconSize-8))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make icons in the container: %w: %s", err, out)
	}
	for i := range icons {
		ids = append(ids, fmt.Sprintf("bench%d", i+1))
	}
	return ids, nil
}

// agent reaches the agent of the only container without any of ours between.
func (k *keeper) agent() (agent containerpb.GarconClient, hangUp func(), err error) {
	sockets, err := filepath.Glob(filepath.Join(k.RuntimeDir, "vms/*", vmm.VsockSocket))
	if err != nil || len(sockets) != 1 {
		return nil, nil, fmt.Errorf("%d VMs have a socket, want 1: %v", len(sockets), err)
	}
	port, err := k.agentPort()
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return vsock.DialUser(ctx, sockets[0], vsock.Addr{VM: termina, Port: port})
		}))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(k.ctx, time.Minute)
	defer cancel()
	agent = containerpb.NewGarconClient(conn)
	if _, err := agent.GetGarconSessionInfo(ctx, &containerpb.GetGarconSessionInfoRequest{}); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("call the container's agent: %w", err), conn.Close())
	}
	return agent, func() { conn.Close() }, nil
}

// agentPort is where that agent listens, which it chooses by chance: vm_cicerone
// has written it down.
func (k *keeper) agentPort() (uint32, error) {
	records, err := filepath.Glob(filepath.Join(k.CiceroneDir, "*.json"))
	if err != nil || len(records) != 1 {
		return 0, fmt.Errorf("vm_cicerone has %d records, want 1: %v", len(records), err)
	}
	text, err := os.ReadFile(records[0])
	if err != nil {
		return 0, err
	}
	var r struct {
		Containers []struct {
			Name string `json:"name"`
			Port uint32 `json:"port"`
		} `json:"containers"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return 0, fmt.Errorf("%s: %w", records[0], err)
	}
	for _, c := range r.Containers {
		if c.Name == ours && c.Port != 0 {
			return c.Port, nil
		}
	}
	return 0, fmt.Errorf("%s: %s has no port: %s", records[0], ours, text)
}
