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
	// SetTimezone sets the guest's time zone, a name such as Europe/Paris.
	SetTimezone(ctx context.Context, name string) error
	// HostNetworkChanged makes the guest forget what it knows of the network.
	HostNetworkChanged(ctx context.Context) error
	// PrepareToSuspend makes the guest write to its disks what it has to.
	PrepareToSuspend(ctx context.Context) error
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

// A UserManager is an agent that manages the guest's users.
type UserManager interface {
	// SetUpUser makes a user, or finds the one that has its uid, and returns
	// the name.
	SetUpUser(ctx context.Context, u User) (string, error)
	// ConfigureContainerGuest hands a guest without containers the token by
	// which its agents are known.
	ConfigureContainerGuest(ctx context.Context, token, user string) error
}

// User is a wish for a user of the guest.
type User struct {
	Name   string
	UID    *uint32 // nil leaves it to the guest
	Groups []string
}

// A StorageManager is an agent that knows the stateful file system. Sizes are
// in bytes.
type StorageManager interface {
	// UpdateStorageBalloon tells how much is free on the host's disk.
	UpdateStorageBalloon(ctx context.Context, free int64, state DiskSpace) error
	// ResizeFilesystem begins to change the size.
	ResizeFilesystem(ctx context.Context, size uint64) error
	// ResizeStatus says whether that goes on, and how large the file system is.
	ResizeStatus(ctx context.Context) (running bool, size uint64, err error)
	// MinimumSize is the smallest size to which it can be changed.
	MinimumSize(ctx context.Context) (uint64, error)
	// AvailableSpace is what is free in it.
	AvailableSpace(ctx context.Context) (uint64, error)
}

// DiskSpace says how full the host's disk is.
type DiskSpace int

const (
	DiskSpaceNormal DiskSpace = iota + 1
	DiskSpaceLow
	DiskSpaceCritical
)

// An InstallState is what a guest tells that installs itself.
type InstallState struct {
	State, Step int32
	Percent     int64
	Reason      string
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
	Subnet string
	// Privileged lets root of a container be root of the guest, where whoever
	// may start the container asks for it.
	Privileged bool
	Features   []int32
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
