package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is how networks are made.
type Config struct {
	// Pool holds the networks of all VMs.
	Pool netip.Prefix
	// KeepForwarding leaves net.ipv4.ip_forward to the administrator.
	KeepForwarding bool
	// MaxConnections bounds those of one guest; zero means 8192.
	MaxConnections uint32
	Log            *slog.Logger
}

// Networks makes the networks of VMs.
type Networks struct {
	cfg Config
	// turn is held by whoever changes something.
	turn chan struct{}
	// laid: the table is there as this process has laid it; under turn.
	laid bool
}

// New returns Networks that have changed nothing yet.
func New(cfg Config) (*Networks, error) {
	if !cfg.Pool.IsValid() || !cfg.Pool.Addr().Is4() || cfg.Pool.Bits() > maxBits || cfg.Pool != cfg.Pool.Masked() {
		return nil, fmt.Errorf("address pool %v: must be an IPv4 network", cfg.Pool)
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = maxConnections
	}
	return &Networks{cfg: cfg, turn: make(chan struct{}, 1)}, nil
}

func (n *Networks) takeTurn(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the networks of other VMs: %w", context.Cause(ctx))
	}
}

// Check refuses what Add would refuse without looking at the host.
func (n *Networks) Check(s Spec) error { return s.Check(n.cfg.Pool) }

// InUse says whether there are interfaces to look after, as far as is known.
// Nil Networks have none.
func (n *Networks) InUse() bool {
	if n == nil {
		return false
	}
	all, err := members()
	return err != nil || len(all) > 0
}

// Add makes a VM's interface, which is there until its descriptor is closed
// for the last time, wherever that has been passed to.
func (n *Networks) Add(ctx context.Context, s Spec) (_ *os.File, err error) {
	if err := n.Check(s); err != nil {
		return nil, err
	}
	if err := n.takeTurn(ctx); err != nil {
		return nil, err
	}
	defer func() { <-n.turn }()
	if err := conflict(s); err != nil {
		return nil, err
	}
	if !s.Restricted {
		if err := n.forward(); err != nil {
			return nil, err
		}
	}
	f, err := openTap(s.name())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			err = errors.Join(err, n.follow())
		}
	}()
	link, err := setUp(s)
	if err != nil {
		return nil, err
	}
	// No packet passes before the rules are there.
	if err := n.follow(); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring the interface %s up: %w", s.name(), err)
	}
	return f, nil
}

// Remove takes away what is left of a VM's network. That there is nothing is
// no error.
func (n *Networks) Remove(ctx context.Context, id string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	if err := n.takeTurn(ctx); err != nil {
		return err
	}
	defer func() { <-n.turn }()
	if err := removeLink(Prefix + id); err != nil {
		return err
	}
	return n.follow()
}

// follow makes the rules fit the interfaces that there are.
func (n *Networks) follow() error {
	all, err := members()
	if err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	if n.laid && len(all) > 0 {
		if err = layElements(c, all); !errors.Is(err, unix.ENOENT) {
			return firewallError(err)
		}
		n.cfg.Log.Warn("somebody has removed the firewall's table of VMs' networks; it is put there again", "table", "inet "+TableName)
	}
	n.laid = false
	if err := layTable(c, all, n.cfg.MaxConnections); err != nil {
		return firewallError(err)
	}
	n.laid = len(all) > 0
	return nil
}

func firewallError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("change the nftables table inet %s: %w (the kernel needs nf_tables with nft_ct, nft_fib_inet, nft_reject_inet, nft_masq, nft_chain_nat and nft_connlimit)", TableName, err)
}

const forwarding = "/proc/sys/net/ipv4/ip_forward"

// forward has the host forward packets, without which no guest gets out.
func (n *Networks) forward() error {
	b, err := os.ReadFile(forwarding)
	if err != nil {
		return fmt.Errorf("look whether the host forwards packets: %w", err)
	}
	if string(bytes.TrimSpace(b)) == "1" {
		return nil
	}
	if n.cfg.KeepForwarding {
		return errors.New("the host does not forward IPv4 packets, and this helper is told not to change that (--ip-forward keep): " +
			"set net.ipv4.ip_forward=1 in /etc/sysctl.d, or give the VM another network with ConfigureVm")
	}
	if err := writeSysctl(forwarding, "1"); err != nil {
		return err
	}
	n.cfg.Log.Warn("the host forwards IPv4 packets from now on, for the networks of VMs (net.ipv4.ip_forward=1; --ip-forward keep forbids it)")
	return nil
}
