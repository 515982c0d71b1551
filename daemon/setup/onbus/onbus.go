// Package onbus is what the daemons that serve callers on a bus have in common:
// who may do what, signals, and the moment from which they serve.
package onbus

import (
	"fmt"
	"log/slog"

	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/daemon/setup"
	"github.com/auberge-vm/auberge/dbus"
)

// Rights are the flags that say who may do what.
type Rights struct {
	Polkit  string
	Daemons []string
}

// AddFlags declares them.
func (r *Rights) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&r.Polkit, "polkit", "", "required: polkit decides who may use VMs and who may manage other people's, and nobody is let in when it cannot be asked; off: every user may use VMs, and root alone manages other people's (default required on the system bus, off on others)")
	f.StringSliceVar(&r.Daemons, "daemon-users", nil, "users of Auberge's other daemons, which hear of everybody's VMs")
}

// Options makes what the bus has to know of the flags.
func Options(c *setup.Common, r *Rights, log *slog.Logger) (dbus.Options, error) {
	o := dbus.Options{Bus: c.Bus, Log: log, BroadcastSignals: c.Broadcast}
	switch r.Polkit {
	case "":
		o.Polkit = c.Bus == "system"
	case "required":
		o.Polkit = true
	case "off":
	default:
		return o, fmt.Errorf("--polkit %q: must be required or off", r.Polkit)
	}
	for _, name := range r.Daemons {
		cred, err := setup.LookupUser(name)
		if err != nil {
			return o, fmt.Errorf("--daemon-users: %w", err)
		}
		o.DaemonUIDs = append(o.DaemonUIDs, cred.UID)
	}
	return o, nil
}

// PolkitWord is the value of --polkit that a service runs with.
func PolkitWord(o dbus.Options) string {
	if o.Polkit {
		return "required"
	}
	return "off"
}

// Ready tells that a daemon serves.
func Ready(log *slog.Logger, bus string) {
	log.Info("ready", "bus", bus)
	if _, err := sddaemon.SdNotify(false, sddaemon.SdNotifyReady); err != nil {
		log.Warn("tell the service manager", "err", err)
	}
}
