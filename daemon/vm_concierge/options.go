package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/concierge/host"
	"github.com/auberge-vm/auberge/daemon/setup"
	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// Where the VMs' units are, and their directories: the unit's RuntimeDirectory.
const (
	vmTemplate = "auberge-vm@.service"
	vmUnitsDir = "/run/auberge-vm"
)

type options struct {
	setup.Options
	supervisor string
	qemu       string
	backend    string
	vmUser     string
	helper     string
	units      bool
	network    string
	pool       string
	localtime  string
	resolver   string
	passwd     string
	logout     string
	update     string
	vulnerable bool
	rights     onbus.Rights
	space      time.Duration
	metrics    string
	// metricsGroup may read the metrics, besides the service's own user.
	metricsGroup string
	maxVMs       limitFlag
	maxMemory    bytesFlag
	maxDisk      bytesFlag
	maxLogs      bytesFlag
	quotas       []string
}

func (o *options) addFlags(f *pflag.FlagSet) {
	o.AddFlags(f)
	f.StringVar(&o.supervisor, "supervisor", "", "the program auberge-vm (default: beside this one)")
	f.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "the QEMU program")
	f.StringVar(&o.backend, "vsock-backend", "vhost-device-vsock", "the program that serves vsock in user mode")
	f.StringVar(&o.vmUser, "vm-user", "auberge-vm", "the user under which VMs run, when this service may switch users")
	f.StringVar(&o.helper, "helper", "", "the `SOCKET` of auberge-helper, which then opens callers' files, dials guests and makes TAP networks (default: this service does it itself)")
	f.BoolVar(&o.units, "vm-units", false, "run VMs as units of systemd, auberge-vm@ID.service: their programs, user and limits are what the unit says")
	f.StringVar(&o.network, "network", "", "what VMs reach unless their owner chose otherwise: none, restricted, user or tap (default tap with --helper, else restricted with --vm-units, else user)")
	f.StringVar(&o.pool, "address-pool", concierge.DefaultPool.String(), "IPv4 network that is divided among VMs")
	f.StringVar(&o.localtime, "localtime", "", "the link that names the guests' time zone (default /etc/localtime)")
	f.StringVar(&o.resolver, "resolv-conf", "", "the resolver's configuration that guests follow (default /etc/resolv.conf, or what systemd-resolved asks)")
	f.StringVar(&o.passwd, "passwd", "", "the file of the machine's accounts: VMs of an account that is removed are stopped (default /etc/passwd, and what else the name service knows)")
	f.StringVar(&o.logout, "logout", string(concierge.LogoutKeep), "what becomes of a user's VMs when the user's last session ends: keep, stop or suspend")
	f.StringVar(&o.update, "image-update", "auto", "auto: a packaged guest image that is another one than before is taken into use at the start; manual: only when an administrator asks for it")
	o.rights.AddFlags(f)
	f.DurationVar(&o.space, "space-interval", 10*time.Second, "how often the free space of the image store is looked at, which guests with sparse disks are told")
	f.StringVar(&o.metrics, "metrics", "", "serve metrics for Prometheus on this Unix socket")
	f.StringVar(&o.metricsGroup, "metrics-group", "", "a group that may read the metrics, which the service's user has to be in (default: nobody else)")
	o.addQuotaFlags(f)
	f.BoolVar(&o.vulnerable, "allow-vulnerable-cpu", false, "run guests on processors with known flaws that the kernel does nothing about")
}

// config makes the service's configuration of the flags.
func (o *options) config(log *slog.Logger) (concierge.Config, error) {
	cfg := concierge.Config{
		StateDir: o.StateDir, RuntimeDir: o.RuntimeDir, ImageDir: o.ImageDir,
		Network: concierge.NetworkMode(o.network), VMGroup: -1,
		Opener: &policy.Opener{}, Log: log,
		Host:               host.Host{Localtime: o.localtime, Resolver: o.resolver, Passwd: o.passwd},
		AllowVulnerableCPU: o.vulnerable,
		SpaceInterval:      o.space,
		Logout:             concierge.LogoutPolicy(o.logout),
	}
	var err error
	if cfg.Pool, err = netip.ParsePrefix(o.pool); err != nil {
		return cfg, fmt.Errorf("--address-pool: %w", err)
	}
	if o.space < 0 {
		return cfg, fmt.Errorf("--space-interval %v: must be positive", o.space)
	}
	switch o.update {
	case "auto":
		cfg.UpdateImage = true
	case "manual":
	default:
		return cfg, fmt.Errorf("--image-update %q: must be auto or manual", o.update)
	}
	if !cfg.Logout.Valid() {
		return cfg, fmt.Errorf("--logout %q: must be keep, stop or suspend", o.logout)
	}
	if cfg.Quota, err = o.quota(); err != nil {
		return cfg, err
	}
	cfg.Quota.Check(log)
	switch {
	case cfg.Network != "":
	case o.helper != "":
		cfg.Network = concierge.NetworkTap
	case o.units:
		cfg.Network = concierge.NetworkRestricted // their own processes reach nothing
	default:
		cfg.Network = concierge.NetworkUser
	}
	if !cfg.Network.Valid() {
		return cfg, fmt.Errorf("--network %q: must be none, restricted, user or tap", o.network)
	}
	switch o.Accel {
	case "auto":
	case string(vmm.AccelKVM), string(vmm.AccelTCG):
		cfg.Accel = vmm.Accel(o.Accel)
	default:
		return cfg, fmt.Errorf("--accel %q: must be auto, kvm or tcg", o.Accel)
	}
	switch o.Vsock {
	case "auto", string(vsock.ModeUser):
		cfg.Vsock = vsock.ModeUser
	case string(vsock.ModeKernel):
		cfg.Vsock = vsock.ModeKernel
	default:
		return cfg, fmt.Errorf("--vsock %q: must be auto, user or kernel", o.Vsock)
	}
	if o.helper != "" {
		c := &helper.Client{Path: o.helper}
		cfg.Opener, cfg.DialGuest, cfg.ReserveCID, cfg.Networks = c, c.Dial, c.ReserveCID, networks{c}
	}
	switch {
	case cfg.Network == concierge.NetworkTap && cfg.Networks == nil:
		return cfg, errors.New("--network tap: auberge-helper makes such networks, give its socket with --helper")
	case cfg.Network == concierge.NetworkUser && o.units:
		return cfg, errors.New("--network user: the processes of a VM reach nothing when they run in a unit of systemd (--vm-units), give --network tap and --helper")
	}
	if err := o.launcher(&cfg, log); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// launcher decides how VMs are started, and as whom: never as root and never
// with a capability.
func (o *options) launcher(cfg *concierge.Config, log *slog.Logger) error {
	if o.units {
		cfg.Launcher = &vmm.Launcher{Units: &vmm.Units{
			Manager: &dbus.Systemd{Bus: o.Bus}, Template: vmTemplate, Dir: vmUnitsDir}}
		return nil
	}
	program, err := o.supervisorPath()
	if err != nil {
		return err
	}
	l := &vmm.Launcher{Program: program, Args: []string{"--qemu", o.qemu, "--vsock-backend", o.backend}}
	cfg.Launcher = l
	if !policy.CanSwitch() {
		if o.helper != "" {
			return errors.New("--helper opens the files of every user, but VMs would run as this service's own user: give --vm-units, or CAP_SETUID, CAP_SETGID and CAP_KILL to start them as --vm-user")
		}
		log.Warn("this service cannot switch users and serves its own user only", "uid", os.Geteuid())
		own := policy.Credential{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
		l.Start = func(cmd *exec.Cmd) error { return policy.StartAs(cmd, own) }
		return nil
	}
	cred, err := setup.LookupUser(o.vmUser)
	if err != nil {
		return fmt.Errorf("--vm-user: %w (VMs never run as root; create a system user for them, or name one)", err)
	}
	if cred.UID == 0 || cred.UID == uint32(os.Geteuid()) {
		return fmt.Errorf("--vm-user %s: VMs must not run as root or as this service's own user", o.vmUser)
	}
	if os.Geteuid() != 0 {
		// The service cannot give files away, so both meet in its own group.
		cred.GID = uint32(os.Getegid())
	}
	cfg.VMGroup = int(cred.GID)
	l.Start = func(cmd *exec.Cmd) error { return policy.StartAs(cmd, cred) }
	return nil
}

func (o *options) supervisorPath() (string, error) {
	if o.supervisor != "" {
		return filepath.Abs(o.supervisor)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for _, p := range []string{filepath.Join(filepath.Dir(self), "auberge-vm"), "/usr/libexec/auberge/auberge-vm"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("the program auberge-vm is not beside this one: give --supervisor")
}

// facts are what everybody may know of how this service is set up.
func (o *options) facts(bus dbus.Options) map[string]any {
	d := map[string]any{"polkit": onbus.PolkitWord(bus), "vm_units": o.units, "helper": o.helper,
		"qemu": o.qemu, "vsock_backend": o.backend}
	if o.Config != "" {
		d["config"] = o.Config
	}
	return d
}
