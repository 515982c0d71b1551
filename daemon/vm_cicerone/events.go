package main

import (
	"log/slog"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/dbus"
)

const (
	// maxEvents bounds what waits to be said.
	maxEvents = 4096
	// maxUserEvents and maxUserBytes are one user's part of it: guests bring
	// about events, and are not to push out those of others.
	maxUserEvents = maxEvents / 4
	maxUserBytes  = 8 << 20
)

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
	users   map[uint32]backlog
}

type event struct {
	owner  uint32
	signal string
	msg    proto.Message
	size   int
}

// A backlog is what waits of one user's.
type backlog struct{ events, bytes int }

func newEvents(log *slog.Logger) *events {
	e := &events{log: log, to: onbus.NewEvents(log), queue: make(chan event, maxEvents), said: make(chan struct{}), users: map[uint32]backlog{}}
	go func() {
		defer close(e.said)
		for ev := range e.queue {
			e.to.Emit(ev.owner, ev.signal, ev.msg)
			e.mu.Lock()
			e.count(ev.owner, -1, -ev.size)
			e.mu.Unlock()
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
	size, waits := proto.Size(msg), e.users[owner]
	if waits.events >= maxUserEvents || waits.events > 0 && waits.bytes+size > maxUserBytes {
		e.dropped++
		return
	}
	// What the message says is what it says now.
	select {
	case e.queue <- event{owner, signal, proto.Clone(msg), size}:
		e.count(owner, 1, size)
		if e.dropped > 0 {
			e.log.Error("signals were lost: the bus takes them too slowly", "signals", e.dropped)
			e.dropped = 0
		}
	default:
		e.dropped++
	}
}

// count adds to what waits of a user's; the caller holds the lock.
func (e *events) count(owner uint32, events, bytes int) {
	b := e.users[owner]
	b.events, b.bytes = b.events+events, b.bytes+bytes
	if b == (backlog{}) {
		delete(e.users, owner)
		return
	}
	e.users[owner] = b
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
