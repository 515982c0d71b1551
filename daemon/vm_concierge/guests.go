package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/dbus"
)

// stopTimeout is how long stopping all VMs may take unless asked otherwise: a
// guest that answers nothing takes more than a minute of it.
const stopTimeout = 140 * time.Second

// stopGuestsCommand is what auberge-guests.service runs when the host goes
// down.
func stopGuestsCommand() *cobra.Command {
	var address, runtimeDir string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "stop-guests",
		Short: "Stop everybody's virtual machines in order, and wait for their end",
		Long: "Ask the vm_concierge that runs to stop everybody's virtual machines in order, and wait\n" +
			"until none is left. This needs root. auberge-guests.service runs it when the host goes down.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return stopGuests(ctx, address, runtimeDir, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&address, "bus", "system", "the bus: system, session or a D-Bus address")
	f.StringVar(&runtimeDir, "runtime-dir", "/run/auberge", "where vm_concierge keeps what it knows of running VMs")
	f.DurationVar(&timeout, "timeout", stopTimeout, "how long to wait")
	return cmd
}

func stopGuests(ctx context.Context, address, runtimeDir string, out io.Writer) error {
	conn, err := bus.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A service that is away is started for VMs only, not to learn that there
	// are none.
	var there bool
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, dbus.ConciergeName).Store(&there); err != nil {
		return err
	}
	if !there && !hasRecords(runtimeDir) {
		fmt.Fprintln(out, "no virtual machines are running")
		return nil
	}
	service := conn.Object(dbus.ConciergeName, dbus.ConciergePath)
	for {
		stopErr := service.CallWithContext(ctx, dbus.ConciergeInterface+".StopAllVms", 0).Err
		left, err := guestsLeft(ctx, service)
		switch {
		case err != nil:
			return fmt.Errorf("stop all virtual machines: %w", errors.Join(stopErr, err))
		case left == 0:
			fmt.Fprintln(out, "all virtual machines have been stopped")
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%d virtual machines still run after the time for stopping them: %w", left, errors.Join(stopErr, context.Cause(ctx)))
		}
		// Some were started meanwhile, or take longer than a call may.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// guestsLeft counts the VMs that have not gone.
func guestsLeft(ctx context.Context, service godbus.BusObject) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var instance string
	var sequence uint64
	var vms, operations []map[string]godbus.Variant
	err := service.CallWithContext(ctx, dbus.Concierge1Name+".GetState", 0).Store(&instance, &sequence, &vms, &operations)
	return len(vms), err
}

// hasRecords says whether a service that is away may have left VMs running.
func hasRecords(runtimeDir string) bool {
	records, err := os.ReadDir(filepath.Join(runtimeDir, "records"))
	return len(records) > 0 || err != nil && !os.IsNotExist(err)
}
