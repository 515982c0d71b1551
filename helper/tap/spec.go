package tap

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Prefix is how the names of our interfaces begin; the VM's id follows.
const Prefix = "aub-"

// ErrRefused is what a Spec gets that nobody may ask for.
var ErrRefused = errors.New("no network of a VM")

// A Spec says what a VM's network is to be.
type Spec struct {
	// ID is the VM's: a word of [0-9a-z], up to 11 of them.
	ID string
	// Gateway is the host's address in the VM's network, with its size.
	Gateway netip.Prefix
	// Guest is the guest's address there.
	Guest netip.Addr
	// Restricted leaves the guest no way out.
	Restricted bool
}

// IDs fit the name of an interface, 15 bytes, with the prefix.
var validID = regexp.MustCompile(`^[0-9a-z]{1,11}$`)

// CheckID refuses what is not the id of a VM.
func CheckID(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("%w: id %q is not 1 to 11 of [0-9a-z]", ErrRefused, id)
	}
	return nil
}

// Sizes of a VM's network: two addresses at least beside its own and the
// broadcast address, and never more than a VM could need.
const (
	minBits = 24
	maxBits = 30
)

// Check refuses what is no network of a VM within the pool.
func (s Spec) Check(pool netip.Prefix) error {
	if err := CheckID(s.ID); err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
	}
	net := s.Gateway.Masked()
	switch {
	case !s.Gateway.IsValid() || !s.Gateway.Addr().Is4():
		return refuse("gateway %v is no IPv4 address with a prefix length", s.Gateway)
	case s.Gateway.Bits() < minBits || s.Gateway.Bits() > maxBits:
		return refuse("the network of gateway %v is not between /%d and /%d", s.Gateway, minBits, maxBits)
	case !pool.Contains(net.Addr()) || pool.Bits() > net.Bits():
		return refuse("network %v is not in %v, the addresses of VMs (see --address-pool)", net, pool)
	case !s.Guest.Is4() || !net.Contains(s.Guest):
		return refuse("guest %v is not in the network %v", s.Guest, net)
	case s.Guest == s.Gateway.Addr():
		return refuse("guest and gateway have the same address %v", s.Guest)
	}
	for _, a := range []netip.Addr{s.Guest, s.Gateway.Addr()} {
		if a == net.Addr() || !net.Contains(a.Next()) {
			return refuse("%v is the first or the last address of %v, which no host can have", a, net)
		}
	}
	return nil
}

func (s Spec) name() string { return Prefix + s.ID }

// aliasWord begins the alias of each interface of ours.
const aliasWord = "auberge"

// alias is what the interface says of itself: all that the rules depend on.
func (s Spec) alias() string {
	way := "out"
	if s.Restricted {
		way = "restricted"
	}
	return strings.Join([]string{aliasWord, s.Guest.String(), way}, " ")
}

// A member is an interface as the rules know it.
type member struct {
	name  string
	guest netip.Addr
	out   bool
}

// memberOf reads an alias back. An interface of our name without one has no
// part in any rule that allows something.
func memberOf(name, alias string) (member, bool) {
	f := strings.Fields(alias)
	if len(f) != 3 || f[0] != aliasWord || !strings.HasPrefix(name, Prefix) {
		return member{}, false
	}
	guest, err := netip.ParseAddr(f[1])
	if err != nil || !guest.Is4() {
		return member{}, false
	}
	return member{name: name, guest: guest, out: f[2] == "out"}, true
}
