package onbus

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
)

// EmitTimeout bounds what telling people about a VM may cost the VM.
const EmitTimeout = 5 * time.Second

// Events sends a service's announcements to the bus. The service exists before
// the bus is reached; what it says until then waits.
type Events struct {
	log    *slog.Logger
	ready  chan struct{} // closed when server is on the bus
	over   chan struct{} // closed when it will not be any more
	server *dbus.Server
}

// NewEvents makes one that waits.
func NewEvents(log *slog.Logger) *Events {
	return &Events{log: log, ready: make(chan struct{}), over: make(chan struct{})}
}

// Ready says that the server is on the bus.
func (e *Events) Ready(s *dbus.Server) {
	e.server = s
	close(e.ready)
}

// Over says that nothing is sent any more.
func (e *Events) Over() { close(e.over) }

// Emit sends a signal with a protobuf.
func (e *Events) Emit(owner uint32, signal string, msg proto.Message) {
	e.send(signal, func(ctx context.Context) error { return e.server.Emit(ctx, owner, signal, msg) })
}

// EmitChange sends a signal of our own interface.
func (e *Events) EmitChange(owner uint32, signal, instance string, sequence uint64, what map[string]any) {
	e.send(signal, func(ctx context.Context) error {
		return e.server.EmitOwn(ctx, owner, signal, instance, sequence, what)
	})
}

func (e *Events) send(signal string, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), EmitTimeout)
	defer cancel()
	select {
	case <-e.ready:
	case <-e.over:
		return
	case <-ctx.Done():
		return
	}
	if err := f(ctx); err != nil {
		e.log.Warn("send a signal", "signal", signal, "err", err)
	}
}
