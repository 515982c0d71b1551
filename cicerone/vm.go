package cicerone

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/guestlink/tremplin"
	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/vsock"
)

// What is kept of one VM at most.
const (
	maxContainers   = 64
	maxOperations   = 64
	maxDialogs      = 8
	maxInhibits     = 256     // of a container
	maxWatches      = 128     // of a container
	maxWatchBytes   = 8 << 10 // of their paths
	maxSessions     = 1024
	maxListBytes    = 2 << 20 // of a list of a container
	maxAllListBytes = 8 << 20 // of all containers' lists
)

// A vm is one that runs. What has no other guard is the service's mu's.
type vm struct {
	s   *Service
	log *slog.Logger
	// info never changes; see refresh.
	info VM
	key  key
	// ctx ends with the VM.
	ctx context.Context
	end context.CancelFunc

	tremplin *tremplin.Client
	// servers are the present ones, retired those before them, which only
	// finish what they have begun.
	servers, retired []*wire.Server

	stopping bool
	gone     bool
	// saving: the record will be written with what changes until then.
	saving bool
	// ready says that tremplin has been heard of.
	ready bool
	// found is when tremplin was found, and had not said that it is ready.
	found time.Time
	// lxdStarts and lxdFails count how starts of the container manager ended,
	// lxdErr is why the last one failed.
	lxdStarts, lxdFails int
	lxdErr              string
	// telling: vm_concierge is being told that tremplin is ready.
	telling bool
	// changed is closed and made anew when containers or the counts change.
	changed    chan struct{}
	containers map[string]*container
	// names are the containers that this VM has or had on its disk.
	names map[string]bool
	ops   map[opKey]*operation
	// openings are what containers ask the desktop to open, messages all that
	// they say, strangers what is said without a token of theirs, reports what
	// tremplin says, crashes those of programs.
	openings, messages, strangers, reports, crashes, metrics window
}

// A container is one that runs, or may.
type container struct {
	name string
	// token is what the agent is known by, pending what it will be known by
	// after the next start: one that has not begun, or that goes on, or of which
	// nobody knows whether it has been.
	token, pending string
	running        bool
	// left is when the agent said that it goes, until it is known what became
	// of the container.
	left time.Time
	// reported counts how often the agent has said that it is ready.
	reported int
	// port and garcon are where the agent listens.
	port       uint32
	garcon     *garcon.Client
	address    string
	user, home string
	sftp       uint32
	os         *pb.OsRelease
	// kept are the last lists for the desktop as their bytes: they take many
	// times as much when they are read.
	kept     [listKinds][]byte
	inhibits map[int32]bool
	watches  map[string]bool
	sessions map[int32]int32
	// messages are what the agent says, so that it leaves some to those of the
	// VM's other containers; lists are those for the desktop.
	messages window
	lists    [listKinds]window
}

// checkContainer accepts the name of a container.
func checkContainer(name string) error {
	if err := policy.CheckContainerName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// orDefault reads a container's name where none means the default.
func orDefault(name string) (string, error) {
	if name == "" {
		return defaultContainer, nil
	}
	return name, checkContainer(name)
}

// containerless says that the VM itself is the container.
func (v *vm) containerless() bool { return !v.info.Containers && v.info.Token != "" }

// needContainers refuses for VMs that have none.
func (v *vm) needContainers() error {
	if !v.info.Containers {
		return fmt.Errorf("VM %q has no containers: it was started without start_termina, or from an image that has no tremplin", v.info.Name)
	}
	return nil
}

func (s *Service) newVM(info VM) *vm {
	v := &vm{s: s, info: info, key: keyOf(info.Owner, info.Name),
		log:     newFewLines(s.log.With("vm", info.Name, "owner", info.Owner.Word, "cid", info.CID)),
		changed: make(chan struct{}), containers: map[string]*container{}, names: map[string]bool{},
		ops:       map[opKey]*operation{},
		openings:  window{limit: 10, span: 15 * time.Second},
		messages:  window{limit: 1000, span: 10 * time.Second},
		strangers: window{limit: 100, span: 10 * time.Second},
		reports:   window{limit: 500, span: 10 * time.Second},
		crashes:   window{limit: 20, span: time.Hour},
		metrics:   window{limit: 40, span: time.Minute}}
	v.ctx, v.end = context.WithCancel(s.quit)
	v.tremplin = tremplin.NewClient(v.dialer(vsock.PortTremplin))
	return v
}

func (v *vm) dialer(port uint32) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return v.s.cfg.Concierge.Dial(ctx, v.info.CID, port) }
}

// hangUp ends the connections with a VM's agents. Nothing is heard of them
// afterwards.
func (v *vm) hangUp() {
	v.end()
	v.s.mu.Lock()
	servers := append(v.servers, v.retired...)
	v.servers, v.retired = nil, nil
	var clients []*garcon.Client
	for _, c := range v.containers {
		if c.garcon != nil {
			clients = append(clients, c.garcon)
			c.garcon = nil
		}
	}
	v.s.mu.Unlock()
	v.tremplin.Close()
	for _, c := range clients {
		c.Close()
	}
	for _, s := range servers {
		s.Close()
	}
}

// emit announces something of the VM while it is there; mu is held.
func (v *vm) emit(signal string, msg proto.Message) {
	if !v.gone {
		v.s.cfg.Events.Emit(v.info.Owner.UID, signal, msg)
	}
}

// notice wakes those who wait for a change; mu is held.
func (v *vm) notice() {
	close(v.changed)
	v.changed = make(chan struct{})
}

// wait returns when done, which is called with mu held, says so.
func (v *vm) wait(ctx context.Context, done func() (bool, error)) error {
	for {
		v.s.mu.Lock()
		ok, err := done()
		if !ok && err == nil && v.gone {
			err = v.errGone()
		}
		changed := v.changed
		v.s.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-v.s.quit.Done():
			return errClosed
		}
	}
}

func (v *vm) errGone() error {
	return fmt.Errorf("%w: VM %q has stopped", ErrNotRunning, v.info.Name)
}

// known returns a container's entry, making it when there is room; mu is held.
func (v *vm) known(name string) (*container, error) {
	if c := v.containers[name]; c != nil {
		return c, nil
	}
	if len(v.containers) >= maxContainers {
		return nil, fmt.Errorf("VM %q has %d containers already, the most that are looked after", v.info.Name, maxContainers)
	}
	c := &container{name: name, inhibits: map[int32]bool{}, watches: map[string]bool{}, sessions: map[int32]int32{},
		messages: window{limit: 500, span: 10 * time.Second}}
	for kind := range c.lists {
		c.lists[kind] = window{limit: 10, span: 10 * time.Second}
	}
	v.containers[name] = c
	v.named(name)
	return c, nil
}

// named remembers that the VM has a container; mu is held.
func (v *vm) named(name string) {
	if len(v.names) < 4*maxContainers {
		v.names[name] = true
	}
}

// byToken returns the container with a token; mu is held.
func (v *vm) byToken(token string) *container {
	if token == "" {
		return nil
	}
	for _, c := range v.containers {
		if c.token == token || c.pending == token {
			return c
		}
	}
	return nil
}

// sorted are the containers by name; mu is held.
func (v *vm) sorted() []*container {
	var all []*container
	for _, n := range slices.Sorted(maps.Keys(v.containers)) {
		all = append(all, v.containers[n])
	}
	return all
}

// nextToken returns the token for a container's next start. It is made unless
// there is one already, with which the container may have been started.
func (v *vm) nextToken(name string) (token string, made bool, err error) {
	v.s.mu.Lock()
	c, err := v.known(name)
	if err == nil {
		if made = c.pending == ""; made {
			c.pending = uuid.NewString()
		}
		token = c.pending
	}
	v.s.mu.Unlock()
	if made {
		v.save()
	}
	return token, made, err
}

// hasStarted says that a container's last start is over: it has, or had, that
// token, and the one before is void; mu is held. When its agent has reported,
// it is known already which it has.
func (c *container) hasStarted() {
	if c.pending != "" && !c.running && c.left.IsZero() {
		c.token, c.pending = c.pending, ""
	}
}

// down says that a container does not run any more; mu is held. Its agent's
// operations end, and the connection is left to the caller to close. The token
// is that of the next start too, unless there is another one for that: a
// container may restart by itself.
func (v *vm) down(c *container, why string) (unused *garcon.Client) {
	v.endOps(func(o *operation) bool { return o.kind.ofAgent() && o.container == c.name }, why)
	v.uninhibit(c)
	clear(c.watches)
	clear(c.sessions)
	v.closeDialogs(c.name)
	unused, c.garcon = c.garcon, nil
	if c.running {
		v.emit(SignalContainerShutdown, &pb.ContainerShutdownSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word})
	}
	c.running, c.kept, c.port = false, [listKinds][]byte{}, 0
	v.notice()
	return unused
}

// forget is down for a container that was deleted; mu is held.
func (v *vm) forget(name string) (unused *garcon.Client) {
	if c := v.containers[name]; c != nil {
		unused = v.down(c, "the container was deleted")
		delete(v.containers, name)
		v.s.beginLocked(func() { v.removeLists(name) })
	}
	delete(v.names, name)
	return unused
}

// closeUnused closes connections that down has left.
func closeUnused(clients ...*garcon.Client) {
	for _, c := range clients {
		if c != nil {
			c.Close()
		}
	}
}
