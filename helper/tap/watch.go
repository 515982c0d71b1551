package tap

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchPause is how long nobody watches after watching has failed.
const watchPause = time.Second

// Run keeps the rules in line with the interfaces until ctx is done: when one
// goes with its VM, and when somebody has flushed the whole firewall.
func (n *Networks) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := n.watch(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Log.Error("watch the networks of VMs", "err", err)
		}
		t := time.NewTimer(watchPause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

func (n *Networks) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	links := make(chan netlink.LinkUpdate, 16)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{}); err != nil {
		return fmt.Errorf("watch the host's interfaces: %w", err)
	}
	defer func() {
		cancel()
		for range links { // its sender must not wait for a reader
		}
	}()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	monitor := nftables.NewMonitor(nftables.WithMonitorAction(nftables.MonitorActionAny), nftables.WithMonitorObject(nftables.MonitorObjectTables))
	changes, err := c.AddGenerationalMonitor(monitor)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer func() {
		monitor.Close()
		for range changes {
		}
	}()
	// From here on nothing is missed; this is for what was.
	n.catchUp(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case l, ok := <-links:
			if !ok {
				return fmt.Errorf("watch the host's interfaces: the kernel has stopped telling")
			}
			if l.Header.Type == unix.RTM_DELLINK && strings.HasPrefix(l.Link.Attrs().Name, Prefix) {
				n.catchUp(ctx)
			}
		case g, ok := <-changes:
			if !ok || g.GeneratedBy.Error != nil {
				return fmt.Errorf("watch nftables: it has stopped telling")
			}
			if deletesOurs(g) {
				n.catchUp(ctx)
			}
		}
	}
}

func deletesOurs(g *nftables.MonitorEvents) bool {
	for _, e := range g.Changes {
		if t, ok := e.Data.(*nftables.Table); ok && e.Type == nftables.MonitorEventTypeDelTable && t.Name == TableName {
			return true
		}
	}
	return false
}

// catchUp makes the rules fit, unless nothing of ours is there.
func (n *Networks) catchUp(ctx context.Context) {
	if n.takeTurn(ctx) != nil {
		return
	}
	defer func() { <-n.turn }()
	needed, err := n.needed()
	if err == nil && needed {
		err = n.follow()
	}
	if err != nil {
		n.cfg.Log.Error("the rules of VMs' networks may not be what they have to be", "err", err)
	}
}

// needed says whether the table has to be looked after. A host on which no VM
// has a network of ours is left as it is.
func (n *Networks) needed() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	there, err := hasTable(c)
	if err != nil {
		return false, err
	}
	if !there {
		n.laid = false
	}
	all, err := members()
	return there || len(all) > 0, err
}
