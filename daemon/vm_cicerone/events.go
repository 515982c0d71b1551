package main

import (
	"log/slog"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/dbus"
)

// maxEvents bounds what waits to be said: some kilobytes each at most.
const maxEvents = 4096

// events announces in the order in which it is told, and keeps nobody waiting:
// the service tells it with locks held.
type events struct {
	log   *slog.Logger
	to    *onbus.Events
	queue chan event
	said  chan struct{} // closed when the queue is

	mu      sync.Mutex
	closed  bool
	dropped int // since the log heard of it
}

type event struct {
	owner  uint32
	signal string
	msg    proto.Message
}

func newEvents(log *slog.Logger) *events {
	e := &events{log: log, to: onbus.NewEvents(log), queue: make(chan event, maxEvents), said: make(chan struct{})}
	go func() {
		defer close(e.said)
		for ev := range e.queue {
			e.to.Emit(ev.owner, ev.signal, ev.msg)
		}
	}()
	return e
}

// Emit implements cicerone.Events.
func (e *events) Emit(owner uint32, signal string, msg proto.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	// What the message says is what it says now.
	select {
	case e.queue <- event{owner, signal, proto.Clone(msg)}:
		if e.dropped > 0 {
			e.log.Error("signals were lost: the bus takes them too slowly", "signals", e.dropped)
			e.dropped = 0
		}
	default:
		e.dropped++
	}
}

// ready says that the server is on the bus.
func (e *events) ready(s *dbus.Server) { e.to.Ready(s) }

// close ends it: the server has left the bus, or never was there.
func (e *events) close() {
	e.to.Over()
	e.mu.Lock()
	e.closed = true
	close(e.queue)
	e.mu.Unlock()
	<-e.said
}
