package testbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what a Bed is made of.
type Options struct {
	// Bin is the directory of the built programs, Image the guest image.
	Bin, Image string
	// Policies are further policy files for the bus.
	Policies []string
	// Log gets what the daemons print.
	Log io.Writer
	// Network is where the daemons run; nil for this machine's own network.
	Network *Network
}

// A Bed is a private bus with Auberge's daemons on it.
type Bed struct {
	// Address is the bus's.
	Address string
	// Dir holds everything; RuntimeDir and StateDir are vm_concierge's,
	// CiceroneDir is vm_cicerone's.
	Dir, RuntimeDir, StateDir, CiceroneDir string
	// Bin and Image are readable to every user of the bed.
	Bin, Image string
	// Concierge is another vm_concierge than Bin's, Env what the daemons have
	// in their environment besides PATH.
	Concierge string
	Env       []string

	service  User
	cicerone User
	policies []string
	log      io.Writer
	network  *Network
	bus      *exec.Cmd

	// ends are what Close has to do besides, the last first.
	ends []func()

	mu sync.Mutex
	// services are vm_concierge and vm_cicerone, as often as they were started.
	services []*Daemon
}

// New starts the bus. Close ends it and every daemon.
func New(ctx context.Context, o Options) (*Bed, error) {
	b := &Bed{log: o.Log, Bin: o.Bin, Image: o.Image, policies: o.Policies, network: o.Network, service: Service, cicerone: Cicerone}
	if b.log == nil {
		b.log = io.Discard
	}
	if err := b.makeDirs(); err != nil {
		return nil, err
	}
	if err := b.StartBus(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bed) makeDirs() (err error) {
	root := os.Geteuid() == 0
	base := ""
	if root {
		base = Base
	}
	if b.Dir, err = os.MkdirTemp(base, "bed"); err != nil {
		return err
	}
	if err := os.Chmod(b.Dir, 0o755); err != nil {
		return err
	}
	b.RuntimeDir, b.StateDir = filepath.Join(b.Dir, "run"), filepath.Join(b.Dir, "state")
	b.CiceroneDir = filepath.Join(b.Dir, "cicerone")
	for _, d := range []string{b.RuntimeDir, b.StateDir, b.CiceroneDir, filepath.Join(b.Dir, "policy")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if !root {
		u, err := user.Current()
		if err != nil {
			return err
		}
		b.service = User{Name: u.Username, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
		b.cicerone = b.service
		return nil
	}
	for _, d := range []string{b.RuntimeDir, b.StateDir} {
		if err := os.Chown(d, int(b.service.UID), int(b.service.GID)); err != nil {
			return err
		}
	}
	if err := os.Chown(b.CiceroneDir, int(b.cicerone.UID), int(b.cicerone.GID)); err != nil {
		return err
	}
	if err := b.makeHomes(); err != nil {
		return err
	}
	// The repository and the cache may lie where only their owner can look.
	for _, dir := range []*string{&b.Bin, &b.Image} {
		if *dir == "" {
			continue
		}
		at := filepath.Join(b.Dir, filepath.Base(*dir))
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(*dir, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", *dir, err)
		}
		*dir = at
	}
	return nil
}

// makeHomes gives every user a directory of their own in the bed, so that beds
// beside each other share none.
func (b *Bed) makeHomes() error {
	if err := os.Mkdir(filepath.Join(b.Dir, "home"), 0o755); err != nil {
		return err
	}
	for _, u := range users() {
		if err := os.Mkdir(b.Home(u), 0o700); err != nil {
			return err
		}
		if err := os.Chown(b.Home(u), int(u.UID), int(u.GID)); err != nil {
			return err
		}
	}
	return nil
}

// StartBus starts the dbus-daemon, again after StopBus at the same address.
func (b *Bed) StartBus(ctx context.Context) error {
	config, err := b.busConfig()
	if err != nil {
		return err
	}
	b.bus = exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address=1")
	b.bus.Stderr = b.log
	b.bus.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: 0}
	out, err := b.bus.StdoutPipe()
	if err != nil {
		return err
	}
	if err := b.bus.Start(); err != nil {
		return fmt.Errorf("start dbus-daemon: %w", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return fmt.Errorf("dbus-daemon said no address: %w", err)
	}
	b.Address = strings.TrimSpace(line)
	return nil
}

// StopBus kills the dbus-daemon.
func (b *Bed) StopBus() {
	if b.bus != nil && b.bus.Process != nil {
		b.bus.Process.Kill()
		b.bus.Wait()
		b.bus = nil
		os.Remove(filepath.Join(b.Dir, "bus"))
	}
}

// busConfig writes the configuration of the bus and our policy for the users
// that the services run as.
func (b *Bed) busConfig() (string, error) {
	src, err := sourceDir()
	if err != nil {
		return "", err
	}
	policies := filepath.Join(b.Dir, "policy")
	files, err := filepath.Glob(filepath.Join(src, "policy/bus/*.conf"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no bus policy in %s: %v", src, err)
	}
	for _, f := range append(files, b.policies...) {
		if err := rewrite(f, filepath.Join(policies, filepath.Base(f)), `user="auberge"`, `user="`+b.service.Name+`"`,
			`user="auberge-cicerone"`, `user="`+b.cicerone.Name+`"`); err != nil {
			return "", err
		}
	}
	config := filepath.Join(b.Dir, "bus.conf")
	return config, rewrite(filepath.Join(src, "policy/bus/private-bus.conf.in"), config,
		"@LISTEN@", "unix:path="+filepath.Join(b.Dir, "bus"), "@POLICY_DIR@", policies)
}

func rewrite(from, to string, oldnew ...string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, []byte(strings.NewReplacer(oldnew...).Replace(string(text))), 0o644)
}

// sourceDir finds the repository from the working directory.
func sourceDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "policy/bus")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("run this in the repository")
}

// A Daemon is a started daemon.
type Daemon struct {
	Cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Done is closed when the daemon has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Stop sends a signal and waits for the end.
func (d *Daemon) Stop(sig syscall.Signal) error {
	d.Cmd.Process.Signal(sig)
	select {
	case <-d.done:
		return d.err
	case <-time.After(time.Minute):
		d.Cmd.Process.Kill()
		<-d.done
		return errors.New("the daemon did not end within a minute")
	}
}

// StartConcierge starts vm_concierge as its own user and returns when it is
// ready. Guests get no way out.
func (b *Bed) StartConcierge(ctx context.Context, args ...string) (*Daemon, error) {
	args = append([]string{"--bus", b.Address, "--state-dir", b.StateDir, "--runtime-dir", b.RuntimeDir,
		"--image-dir", b.Image, "--image-update", "manual", "--network", "restricted", "--daemon-users", b.cicerone.Name}, args...)
	program := filepath.Join(b.Bin, "vm_concierge")
	if b.Concierge != "" {
		program = b.Concierge
		args = append(args, "--supervisor", filepath.Join(b.Bin, "auberge-vm"))
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = b.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, b.Env...)
	if os.Geteuid() == 0 {
		// Exactly what the packaged service would have without its helper.
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: b.service.UID, Gid: b.service.GID},
			AmbientCaps: []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL},
		}
	}
	return b.startService(ctx, cmd)
}

// StartCicerone starts vm_cicerone as its own user and returns when it is
// ready.
func (b *Bed) StartCicerone(ctx context.Context, args ...string) (*Daemon, error) {
	cmd := exec.Command(filepath.Join(b.Bin, "vm_cicerone"), append([]string{"--bus", b.Address,
		"--state-dir", b.CiceroneDir, "--daemon-users", b.service.Name}, args...)...)
	cmd.Dir = b.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, b.Env...)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: b.cicerone.UID, Gid: b.cicerone.GID}}
	}
	return b.startService(ctx, cmd)
}

// startService starts a daemon that Close ends in order.
func (b *Bed) startService(ctx context.Context, cmd *exec.Cmd) (*Daemon, error) {
	d, err := b.startDaemon(ctx, cmd)
	if d != nil {
		b.mu.Lock()
		b.services = append(b.services, d)
		b.mu.Unlock()
	}
	return d, err
}

// StartHelper starts auberge-helper as root and returns when it is ready; its
// socket is at HelperSocket.
func (b *Bed) StartHelper(ctx context.Context, args ...string) (*Daemon, error) {
	cmd := exec.Command(filepath.Join(b.Bin, "auberge-helper"), append([]string{"--socket", b.HelperSocket(),
		"--peer-user", b.service.Name, "--reserved-uids", ""}, args...)...)
	cmd.Dir = b.Dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return b.startDaemon(ctx, cmd)
}

// HelperSocket is where auberge-helper is reached.
func (b *Bed) HelperSocket() string { return filepath.Join(b.Dir, "helper") }

// startDaemon starts a daemon and waits until it says that it is ready, by
// the protocol of systemd.
func (b *Bed) startDaemon(ctx context.Context, cmd *exec.Cmd) (*Daemon, error) {
	notify, err := listenNotify(b.Dir)
	if err != nil {
		return nil, err
	}
	defer notify.close()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify.path)
	cmd.Stdout, cmd.Stderr = b.log, b.log
	start := cmd.Start
	if b.network != nil {
		start = func() error { return b.network.Do(cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	d := &Daemon{Cmd: cmd, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	ready := make(chan error, 1)
	go func() { ready <- notify.wait() }()
	select {
	case err := <-ready:
		return d, err
	case <-d.done:
		return d, fmt.Errorf("%s ended at once: %v", cmd.Path, d.err)
	case <-ctx.Done():
		cmd.Process.Kill()
		return d, ctx.Err()
	}
}

// Command prepares a program to be run by a user.
func (b *Bed) Command(u User, name string, args ...string) *exec.Cmd {
	if path := filepath.Join(b.Bin, name); !strings.Contains(name, "/") {
		if _, err := os.Stat(path); err == nil {
			name = path
		}
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = b.Home(u)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.Home(u), "USER=" + u.Name, "TERM=" + os.Getenv("TERM"),
		"LANG=C.UTF-8", "DBUS_SYSTEM_BUS_ADDRESS=" + b.Address}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID}}
	}
	return cmd
}

// Home is a user's home directory.
func (b *Bed) Home(u User) string {
	if os.Geteuid() != 0 || u.UID == 0 {
		return b.Dir
	}
	return filepath.Join(b.Dir, "home", u.Name)
}

// Caller is the ordinary user of the bed: alice, or without root the one
// there is.
func (b *Bed) Caller() User {
	if os.Geteuid() == 0 {
		return Alice
	}
	return b.service
}

// Close ends what runs and removes what it left.
func (b *Bed) Close() {
	b.mu.Lock()
	services := b.services
	b.mu.Unlock()
	for _, d := range slices.Backward(services) {
		select {
		case <-d.done:
		default:
			d.Stop(syscall.SIGTERM)
		}
	}
	for _, pid := range b.Processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, end := range slices.Backward(b.ends) {
		end()
	}
	b.StopBus()
	if os.Geteuid() == 0 {
		unix.Unmount(filepath.Join(b.Dir, filepath.Base(b.Bin)), unix.MNT_DETACH)
		unix.Unmount(filepath.Join(b.Dir, filepath.Base(b.Image)), unix.MNT_DETACH)
		// Only what is ours, should an unmount have failed.
		for _, d := range []string{b.RuntimeDir, b.StateDir, b.CiceroneDir, filepath.Join(b.Dir, "home")} {
			os.RemoveAll(d)
		}
		return
	}
	os.RemoveAll(b.Dir)
}

// Processes lists the processes of VMs that this bed has running: those whose
// working directory is a VM's.
func (b *Bed) Processes() []int {
	vms := filepath.Join(b.RuntimeDir, "vms") + "/"
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cwd, err := os.Readlink("/proc/" + e.Name() + "/cwd"); err == nil && strings.HasPrefix(cwd, vms) {
			pids = append(pids, pid)
		}
	}
	return pids
}
