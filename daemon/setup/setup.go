// Package setup is what the mains of the daemons have in common: flags and
// the configuration file behind them, logging, and the user under which other
// processes run.
package setup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/policy"
)

// Common are the flags of every daemon on a bus.
type Common struct {
	Bus       string
	Config    string
	LogLevel  slog.Level
	Broadcast bool
}

// AddFlags declares them.
func (o *Common) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Bus, "bus", "system", "the bus: system, session or a D-Bus address")
	f.StringVar(&o.Config, "config", "", "configuration file: lines of \"flag = value\", with a section for each daemon (see auberge.conf); the command line wins")
	f.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.BoolVar(&o.Broadcast, "broadcast-signals", false, "send signals to everybody instead of the VM's owner (always so on a session bus)")
}

// Finish reads the configuration file, with the section of the given daemon,
// and fills in what depends on the bus.
func (o *Common) Finish(f *pflag.FlagSet, daemon string) error {
	if o.Config != "" {
		if err := LoadConfig(f, o.Config, daemon); err != nil {
			return err
		}
	}
	o.Broadcast = o.Broadcast || o.Bus == "session"
	return nil
}

// Logger is the daemon's log.
func (o *Common) Logger() *slog.Logger { return Logger(o.LogLevel) }

// DefaultStateDir is where a daemon keeps what stays: a directory of the given
// name, on a session bus in the user's own.
func (o *Common) DefaultStateDir(name string) string {
	if o.Bus != "session" {
		return filepath.Join("/var/lib", name)
	}
	return filepath.Join(xdg("XDG_STATE_HOME", ".local/state"), name)
}

// Options are the flags of a daemon that runs VMs.
type Options struct {
	Common
	StateDir   string
	RuntimeDir string
	ImageDir   string
	Accel      string
	Vsock      string
}

// AddFlags declares them.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	o.Common.AddFlags(f)
	f.StringVar(&o.StateDir, "state-dir", "", "where disk images and settings are kept (default /var/lib/auberge; below $XDG_STATE_HOME on a session bus)")
	f.StringVar(&o.RuntimeDir, "runtime-dir", "", "where running VMs have their sockets (default /run/auberge; below $XDG_RUNTIME_DIR on a session bus)")
	f.StringVar(&o.ImageDir, "image-dir", "/usr/share/auberge/image", "the installed guest image")
	f.StringVar(&o.Accel, "accel", "auto", "accelerator: auto (KVM when a probe shows that it runs guests), kvm or tcg")
	f.StringVar(&o.Vsock, "vsock", "auto", "vsock transport: auto (user), user (a private Unix socket per VM) or kernel (vhost-vsock)")
}

// Finish is Common's, and fills in where things are.
func (o *Options) Finish(f *pflag.FlagSet, daemon string) error {
	if err := o.Common.Finish(f, daemon); err != nil {
		return err
	}
	if o.StateDir == "" {
		o.StateDir = o.DefaultStateDir("auberge")
	}
	if o.RuntimeDir == "" {
		o.RuntimeDir = "/run/auberge"
		if o.Bus == "session" {
			dir := os.Getenv("XDG_RUNTIME_DIR")
			if dir == "" {
				return errors.New("XDG_RUNTIME_DIR is not set: give --runtime-dir")
			}
			o.RuntimeDir = filepath.Join(dir, "auberge")
		}
	}
	return nil
}

func xdg(variable, below string) string {
	if d := os.Getenv(variable); filepath.IsAbs(d) {
		return d
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, below)
}

// LookupUser finds a user by name or number, with the user's groups: that of
// /dev/kvm is often one of them.
func LookupUser(name string) (policy.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if _, nerr := strconv.ParseUint(name, 10, 32); nerr == nil {
			u, err = user.LookupId(name)
		}
	}
	if err != nil {
		return policy.Credential{}, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return policy.Credential{}, fmt.Errorf("uid %q of user %s: %w", u.Uid, name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return policy.Credential{}, fmt.Errorf("gid %q of user %s: %w", u.Gid, name, err)
	}
	cred := policy.Credential{UID: uint32(uid), GID: uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return policy.Credential{}, fmt.Errorf("groups of user %s: %w", name, err)
	}
	for _, id := range ids {
		g, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return policy.Credential{}, fmt.Errorf("group %q of user %s: %w", id, name, err)
		}
		cred.Groups = append(cred.Groups, uint32(g))
	}
	return cred, nil
}
