// Auberge-helper does the few things for vm_concierge that need privileges:
// see the package helper. Systemd starts it when its socket is used.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/daemon/setup"
	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/helper/tap"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vsock"
)

type options struct {
	config   string
	socket   string
	peer     string
	minUID   uint32
	reserved helper.UIDRange
	idle     time.Duration
	taps     bool
	pool     string
	forward  string
	logLevel slog.Level
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == policy.OpenCommand {
		os.Exit(policy.OpenMain(os.Args[2:]))
	}
	var o options
	cmd := &cobra.Command{
		Use:           "auberge-helper",
		Short:         "The privileged part of Auberge",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.config != "" {
				if err := setup.LoadConfig(cmd.Flags(), o.config, "auberge-helper"); err != nil {
					return err
				}
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, &o)
		},
	}
	o.addFlags(cmd.Flags())
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "auberge-helper:", err)
		os.Exit(1)
	}
}

func (o *options) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.socket, "socket", "", "make this socket `PATH` (default: the one that systemd passes)")
	f.StringVar(&o.peer, "peer-user", "auberge", "the user whose processes may ask, besides root")
	f.Uint32Var(&o.minUID, "min-uid", 1000, "no file is opened as a user below this uid")
	o.reserved = helper.ReservedUIDs
	f.TextVar(&o.reserved, "reserved-uids", o.reserved, "no file is opened as a user in this range, `FIRST-LAST`")
	f.DurationVar(&o.idle, "idle-exit", 0, "end when nobody came for so long (0: never)")
	f.BoolVar(&o.taps, "taps", true, "make TAP networks for VMs, which needs CAP_NET_ADMIN")
	f.StringVar(&o.pool, "address-pool", "100.115.128.0/17", "IPv4 `NETWORK` in which those of VMs lie; as vm_concierge's")
	f.StringVar(&o.forward, "ip-forward", "set", "set: have the host forward IPv4 packets (net.ipv4.ip_forward) once a VM has a TAP network; keep: make none where it does not")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.StringVar(&o.config, "config", "", "configuration `FILE`: lines of \"flag = value\" with a section for each daemon; the command line wins")
}

func run(ctx context.Context, o *options) error {
	log := setup.Logger(o.logLevel)
	peer, err := setup.LookupUser(o.peer)
	if err != nil {
		return fmt.Errorf("--peer-user: %w", err)
	}
	if !policy.CanSwitch() {
		return errors.New("this program needs CAP_SETUID, CAP_SETGID and CAP_KILL; start it as root or by its unit")
	}
	networks, err := o.networks(log)
	if err != nil {
		return err
	}
	l, err := listener(o.socket, peer)
	if err != nil {
		return err
	}
	defer l.Close()
	if networks != nil {
		ctx, cancel := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() { networks.Run(ctx) })
		defer watching.Wait()
		defer cancel()
	}
	s := &helper.Server{PeerUID: peer.UID, MinUID: o.minUID, ReservedUIDs: o.reserved,
		Opener: &policy.Opener{}, DialGuest: vsock.DialKernel, ReserveCID: vsock.ReserveCID, Networks: networks, Log: log, Idle: o.idle}
	log.Info("ready", "peer", o.peer, "socket", l.Addr())
	if _, err := sddaemon.SdNotify(false, sddaemon.SdNotifyReady); err != nil {
		log.Warn("tell the service manager", "err", err)
	}
	return s.Serve(ctx, l)
}

// networks makes TAP networks, nil where there are to be none.
func (o *options) networks(log *slog.Logger) (*tap.Networks, error) {
	if !o.taps {
		return nil, nil
	}
	if o.forward != "set" && o.forward != "keep" {
		return nil, fmt.Errorf("--ip-forward %q: must be set or keep", o.forward)
	}
	pool, err := netip.ParsePrefix(o.pool)
	if err != nil {
		return nil, fmt.Errorf("--address-pool: %w", err)
	}
	n, err := tap.New(tap.Config{Pool: pool.Masked(), KeepForwarding: o.forward == "keep", Log: log})
	if err != nil {
		return nil, fmt.Errorf("--address-pool: %w", err)
	}
	return n, nil
}

// listener is the socket that systemd passes, or a new one that only the peer
// and root can connect to.
func listener(path string, peer policy.Credential) (*net.UnixListener, error) {
	if path == "" {
		passed := activation.Files(true)
		if len(passed) != 1 {
			return nil, fmt.Errorf("%d sockets were passed, want one: start auberge-helper.socket, or give --socket", len(passed))
		}
		defer passed[0].Close()
		l, err := net.FileListener(passed[0])
		if err != nil {
			return nil, fmt.Errorf("the socket that was passed: %w", err)
		}
		u, ok := l.(*net.UnixListener)
		if !ok || u.Addr().Network() != "unixpacket" {
			l.Close()
			return nil, fmt.Errorf("the socket that was passed is %s, want a Unix SOCK_SEQPACKET socket", l.Addr().Network())
		}
		return u, nil
	}
	// One that was killed leaves its socket; a file of another kind stays.
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		os.Remove(path)
	}
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(path, int(peer.UID), -1); err != nil && os.Geteuid() == 0 {
		l.Close()
		return nil, fmt.Errorf("give the socket to its user: %w", err)
	}
	return l, nil
}
