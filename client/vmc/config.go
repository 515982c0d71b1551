package vmc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
)

var networks = []string{"none", "restricted", "user", "tap"}

func (a *app) configCommand() *cobra.Command {
	var memory sizeFlag
	var cpus uint32
	var network string
	cmd := &cobra.Command{
		Use:   "config NAME",
		Short: "Show or change the settings of a VM",
		Long: "Show the settings with which the VM called NAME will start next, or change those that\n" +
			"flags are given for. The network is none, restricted (no way out), user or tap.\n" +
			"As JSON, memory is in MiB, and what was never set is not there.",
		Example: `  vmc config termina
  vmc config termina --memory 2G --cpus 2 --network restricted`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running, a.withDisk),
		RunE: func(cmd *cobra.Command, args []string) error {
			settings := map[string]godbus.Variant{}
			changed := cmd.Flags().Changed
			if changed("memory") {
				// The smallest unit of a setting is a MiB.
				if memory < 1<<20 {
					return withCode(ExitUsage, fmt.Errorf("--memory %d is %d bytes: give a unit, such as 512M or 2G", memory, memory))
				}
				settings["memory"] = godbus.MakeVariant(uint64(memory) >> 20)
			}
			if changed("cpus") {
				settings["cpus"] = godbus.MakeVariant(cpus)
			}
			if changed("network") {
				if !slices.Contains(networks, network) {
					return withCode(ExitUsage, fmt.Errorf("there is no --network %q: give %s%s", network,
						strings.Join(networks, ", "), suggestion(network, networks)))
				}
				settings["network"] = godbus.MakeVariant(network)
			}
			return a.withSession(func(ctx context.Context, s *session, args []string) error {
				return a.config(ctx, s, args[0], settings)
			})(cmd, args)
		},
	}
	f := cmd.Flags()
	f.Var(&memory, "memory", "memory, a `SIZE` such as 2G")
	f.Uint32Var(&cpus, "cpus", 0, "number of CPUs, `N`")
	f.StringVar(&network, "network", "", "the `NETWORK`: none, restricted, user or tap")
	completeFlag(cmd, "network", words(networks...))
	completeFlag(cmd, "memory", words())
	completeFlag(cmd, "cpus", words())
	return cmd
}

// config changes what is given and shows what there is.
func (a *app) config(ctx context.Context, s *session, name string, change map[string]godbus.Variant) error {
	if len(change) > 0 {
		if err := s.plain(ctx, "ConfigureVm", []any{name, a.owner, change}); err != nil {
			return err
		}
	}
	settings := map[string]godbus.Variant{}
	if err := s.plain(ctx, "GetVmSettings", []any{name, a.owner}, &settings); err != nil {
		return err
	}
	// A VM need not exist to have settings, but a name may be a mistake.
	if hint := suggestion(name, append(a.running(ctx, s), a.withDisk(ctx, s)...)); hint != "" {
		fmt.Fprintf(a.err, "vmc: there is no VM %q yet%s\n", name, hint)
	}
	if a.json {
		return a.printValue(plainValue(settings))
	}
	t := a.table()
	for _, key := range []string{"memory", "cpus", "network"} {
		value := plainValue(settings[key])
		switch v := value.(type) {
		case nil:
			value = "as the service chooses"
		case uint64:
			value = bytesWord(min(v, math.MaxUint64>>20) << 20)
		}
		t.row(strings.ToUpper(key[:1])+key[1:], value)
	}
	if plainValue(settings["unchecked_agent"]) == true {
		t.row("Unchecked agent", "allowed")
	}
	return t.end()
}

func (a *app) vsockAllowCommand() *cobra.Command {
	var never bool
	cmd := &cobra.Command{
		Use:   "vsock-allow NAME",
		Short: "Let a VM run a system of its owner's with kernel vsock (for administrators)",
		Long: "Where the service runs with kernel vsock, every user of this host can dial every guest.\n" +
			"Auberge's own agents turn away all but the service; what else listens in a guest does not.\n" +
			"VMs with a kernel, an initrd or a root file system of their owner's are therefore refused\n" +
			"there until an administrator allows it for that VM.",
		Example: `  vmc --owner 1000 vsock-allow mine
  vmc --owner 1000 vsock-allow mine --never`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running, a.withDisk),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			if a.owner == "" {
				return withCode(ExitUsage, errors.New("say whose VM it is, with --owner and a uid"))
			}
			return s.plain(ctx, "AllowUncheckedAgent", []any{args[0], a.owner, !never})
		}),
	}
	cmd.Flags().BoolVar(&never, "never", false, "forbid it again")
	return cmd
}
