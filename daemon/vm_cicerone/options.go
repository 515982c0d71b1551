package main

import (
	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/concierge/host"
	"github.com/auberge-vm/auberge/daemon/setup"
	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/dbus"
)

type options struct {
	setup.Common
	rights    onbus.Rights
	stateDir  string
	localtime string
}

func (o *options) addFlags(f *pflag.FlagSet) {
	o.Common.AddFlags(f)
	o.rights.AddFlags(f)
	f.StringVar(&o.stateDir, "state-dir", "", "where it is written down which containers there are (default /var/lib/auberge-cicerone; below $XDG_STATE_HOME on a session bus)")
	f.StringVar(&o.localtime, "localtime", "", "the link that names the containers' time zone (default /etc/localtime)")
}

// finish reads the configuration file and fills in what depends on the bus.
func (o *options) finish(f *pflag.FlagSet) error {
	if err := o.Finish(f, "vm_cicerone"); err != nil {
		return err
	}
	if o.stateDir == "" {
		o.stateDir = o.DefaultStateDir("auberge-cicerone")
	}
	return nil
}

func (o *options) host() host.Host { return host.Host{Localtime: o.localtime} }

// facts are what everybody may know of how this service is set up.
func (o *options) facts(bus dbus.Options) map[string]any {
	d := map[string]any{"polkit": onbus.PolkitWord(bus)}
	if o.Config != "" {
		d["config"] = o.Config
	}
	return d
}
