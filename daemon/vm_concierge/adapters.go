package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
)

// emitTimeout bounds what telling people about a VM may cost the VM.
const emitTimeout = 5 * time.Second

// events sends the service's announcements to the bus. The service exists
// before the bus is reached; what it says until then waits.
type events struct {
	log    *slog.Logger
	ready  chan struct{} // closed when server is on the bus
	server *dbus.Server
}

// Emit implements concierge.Events.
func (e *events) Emit(owner uint32, signal string, msg proto.Message) {
	ctx, cancel := context.WithTimeout(context.Background(), emitTimeout)
	defer cancel()
	select {
	case <-e.ready:
	case <-ctx.Done():
		return
	}
	if err := e.server.Emit(ctx, owner, signal, msg); err != nil {
		e.log.Warn("send a signal", "signal", signal, "err", err)
	}
}

// own serves our own interface by the same service.
type own struct{ service *concierge.Service }

var _ dbus.Concierge1 = own{}

func (o own) ConnectVsock(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, error) {
	return o.service.ConnectVsock(ctx, s, name, port)
}

func (o own) ConfigureVm(ctx context.Context, s policy.Subject, name string, set dbus.VMSettings) error {
	return o.service.ConfigureVm(ctx, s, name, concierge.Settings{
		MemoryMiB: set.MemoryMiB, CPUs: set.CPUs, Network: (*concierge.NetworkMode)(set.Network)})
}
