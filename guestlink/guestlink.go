// Package guestlink is the host's side of a guest agent. The agent's protocol
// stays behind the roles declared here, so that a guest which speaks another
// one can be driven by the same services. guestlink/maitred is the first.
package guestlink

import (
	"context"
	"net/netip"
	"time"
)

// An Agent is what every guest agent can do for its host. Calls return the
// guest's own words in their errors; a caller bounds each with a context.
type Agent interface {
	// Ready is closed when the guest has said that it is up.
	Ready() <-chan struct{}
	// ConfigureNetwork gives the guest's first interface its address.
	ConfigureNetwork(ctx context.Context, n Network) error
	// SetResolver replaces the guest's name servers and search domains.
	SetResolver(ctx context.Context, r Resolver) error
	// SetTime sets the guest's clock.
	SetTime(ctx context.Context, t time.Time) error
	// Mount mounts a file system in the guest.
	Mount(ctx context.Context, m Mount) error
	// KernelVersion returns release and version of the guest's kernel.
	KernelVersion(ctx context.Context) (release, version string, err error)
	// PowerOff asks the guest to shut down in order. That the call returns
	// does not mean that the guest is down.
	PowerOff(ctx context.Context) error
	// Close ends the connections; the guest runs on.
	Close()
}

// A ContainerHost is an agent that can prepare its VM for containers.
type ContainerHost interface {
	// StartTermina mounts the stateful disk and starts the services that
	// containers need.
	StartTermina(ctx context.Context, t Termina) (TerminaResult, error)
}

// Network is the guest's side of a point of attachment.
type Network struct {
	Address netip.Prefix // the guest's address with its network's length
	Gateway netip.Addr
}

// Resolver is what goes into resolv.conf(5).
type Resolver struct {
	NameServers   []string
	SearchDomains []string
}

// Mount is one call of mount(2).
type Mount struct {
	Source, Target, FSType string
	Flags                  uint64
	Data                   string
	CreateTarget           bool
	// MakeFS formats the source with btrfs when it cannot be mounted.
	MakeFS bool
	// Permissions of the mounted directory, when not zero.
	Permissions uint32
}

// Termina is what StartTermina needs to know.
type Termina struct {
	StatefulDevice string
	// Subnet is the containers' IPv4 network, empty when there is none.
	Subnet   string
	Features []int32
}

// A MountResult says how the stateful disk could be mounted.
type MountResult int

const (
	MountUnknown MountResult = iota
	MountSuccess
	// MountPartialDataLoss: an older root of the file system had to be used.
	MountPartialDataLoss
	MountFailure
)

// TerminaResult is what came of StartTermina.
type TerminaResult struct {
	Mount     MountResult
	FreeBytes int64
	HasFree   bool
}
