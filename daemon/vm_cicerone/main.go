// Vm_cicerone looks after the containers inside of this machine's VMs and
// serves org.chromium.VmCicerone.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/cicerone"
	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/dbus"
)

func main() {
	var o options
	cmd := &cobra.Command{
		Use:           "vm_cicerone",
		Short:         "Containers in virtual machines, over D-Bus",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.finish(cmd.Flags()); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, &o)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.CompletionOptions.DisableDefaultCmd = true
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "vm_cicerone:", err)
		os.Exit(1)
	}
}

// run serves until ctx is done. Containers run on.
func run(ctx context.Context, o *options) error {
	log := o.Logger()
	bus, err := onbus.Options(&o.Common, &o.rights, log)
	if err != nil {
		return err
	}
	client := dbus.NewConciergeClient(o.Bus, log)
	defer client.Close()
	events, desktop := newEvents(log), &desktop{}
	service, err := cicerone.New(ctx, cicerone.Config{
		StateDir: o.stateDir, Timezone: o.host().Timezone,
		Concierge: concierge{client}, Events: events, Desktop: desktop, Log: log,
	})
	if err != nil {
		events.close()
		return err
	}
	defer events.close()
	defer service.Close()
	bus.DesktopAppeared = service.DesktopAppeared
	server, err := dbus.New(
		[]dbus.Service{dbus.CiceroneService(service)},
		[]dbus.OwnInterface{dbus.Cicerone1Interface(own{service, o.facts(bus)})},
		bus)
	if err != nil {
		return err
	}
	desktop.to.Store(dbus.NewDesktop(server))
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() {
		client.Run(ctx, func(ctx context.Context) {
			if err := service.Resync(ctx); err != nil && !errors.Is(err, context.Canceled) {
				log.Warn("look at the VMs of vm_concierge", "err", err)
			}
		})
	})
	following.Go(func() {
		if err := o.host().FollowTimezone(ctx, log, service.TimezoneChanged); err != nil {
			log.Warn("containers that run will not hear of another time zone", "err", err)
		}
	})
	return server.Run(ctx, func() {
		events.ready(server)
		onbus.Ready(log, o.Bus)
	})
}
