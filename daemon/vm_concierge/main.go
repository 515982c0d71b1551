// Vm_concierge owns the virtual machines and disk images of this machine's
// users and serves org.chromium.VmConcierge.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vsock"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == policy.OpenCommand {
		os.Exit(policy.OpenMain(os.Args[2:]))
	}
	var o options
	cmd := &cobra.Command{
		Use:           "vm_concierge",
		Short:         "Virtual machines for every user, over D-Bus",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Finish(cmd.Flags(), "vm_concierge"); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, &o)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.AddCommand(stopGuestsCommand())
	cmd.CompletionOptions.DisableDefaultCmd = true
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "vm_concierge:", err)
		os.Exit(1)
	}
}

// run serves until ctx is done. VMs run on.
func run(ctx context.Context, o *options) error {
	log := o.Logger()
	cfg, err := o.config(log)
	if err != nil {
		return err
	}
	bus, err := onbus.Options(&o.Common, &o.rights, log)
	if err != nil {
		return err
	}
	cfg.KernelSocket = newSocketStore(log, cfg.Vsock == vsock.ModeKernel).socket
	events := onbus.NewEvents(log)
	cfg.Events = events
	cicerone := containers{dbus.NewCiceroneClient(o.Bus, log)}
	defer cicerone.client.Close()
	cfg.Containers = cicerone
	serveMetrics, err := o.measure(log, &cfg, &bus)
	if err != nil {
		return err
	}
	service, err := concierge.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer service.Close()
	defer events.Over() // or Close would wait for a bus, once for each signal
	bus.UserExists = func(uid uint32) bool { return policy.UserExists(uid) || service.Keeps(uid) }
	server, err := dbus.New(
		[]dbus.Service{dbus.ConciergeService(service)},
		[]dbus.OwnInterface{dbus.Concierge1Interface(own{service, o.facts(bus)})},
		bus)
	if err != nil {
		return err
	}
	endMetrics, err := serveMetrics(ctx, service)
	if err != nil {
		return err
	}
	defer endMetrics()
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	ready := make(chan struct{})
	listening.Go(func() { cicerone.follow(ctx, ready, service) })
	listening.Go(func() { dbus.NewLogind(o.Bus, log, service).Run(ctx) })
	return server.Run(ctx, func() {
		events.Ready(server)
		close(ready)
		onbus.Ready(log, o.Bus)
	})
}
