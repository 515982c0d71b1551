package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"strconv"

	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/daemon/setup"
	"github.com/auberge-vm/auberge/vmm"
)

// unitCommand is what the service manager starts for each VM. A daemon that
// asked for it then finds the control socket in the unit's directory.
func unitCommand(p *programs) *cobra.Command {
	var peer string
	cmd := &cobra.Command{
		Use:   "unit",
		Short: "Serve a control socket in $RUNTIME_DIRECTORY, as a unit of systemd of the type notify",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return runUnit(peer, p)
		},
	}
	cmd.Flags().StringVar(&peer, "peer-user", "auberge", "the user, by name or number, who may use the control socket")
	return cmd
}

func runUnit(peer string, p *programs) error {
	log := setup.Logger(slog.LevelInfo)
	uid, err := lookupUID(peer)
	if err != nil {
		return fmt.Errorf("--peer-user: %w", err)
	}
	dir, err := vmm.UnitDir()
	if err != nil {
		return err
	}
	if err := protect(log); err != nil {
		return err
	}
	cfg, err := vmm.PrepareUnit(dir, uid)
	if err != nil {
		return err
	}
	cfg.Driver, cfg.Backend, cfg.Log = p.qemu, p.backend, log
	// What starts from here on does not speak for the unit.
	told, err := sddaemon.SdNotify(true, sddaemon.SdNotifyReady)
	if err == nil && !told {
		err = errors.New("NOTIFY_SOCKET is not set: this is started by the service manager only")
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return supervise(cfg)
}

func lookupUID(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}
