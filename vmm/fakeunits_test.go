package vmm_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	sddaemon "github.com/coreos/go-systemd/v22/daemon"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
)

// fakeUnits stands in for systemd, which tests cannot have everywhere: a unit is
// a process group of this program with a directory and a notification socket.
// What systemd itself makes of the real unit is for the test host.
type fakeUnits struct {
	t   *testing.T
	dir string

	mu         sync.Mutex
	running    map[string]*fakeUnit
	properties map[string]map[string]any
}

type fakeUnit struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when no process is left, nor the directory
}

var _ vmm.ServiceManager = (*fakeUnits)(nil)

// unitEnv makes units fail: "dies" or "silent".
const unitEnv = "VMM_TEST_UNIT"

// newUnits returns a launcher of units.
func newUnits(t *testing.T) (*vmm.Launcher, *fakeUnits) {
	t.Helper()
	u := &fakeUnits{t: t, dir: t.TempDir(), running: map[string]*fakeUnit{}, properties: map[string]map[string]any{}}
	t.Cleanup(u.end)
	l := &vmm.Launcher{Units: &vmm.Units{Manager: u, Template: "vm@.service", Dir: u.dir}}
	l.SetGrace(patience)
	return l, u
}

func (u *fakeUnits) end() {
	u.mu.Lock()
	left := maps.Clone(u.running)
	u.mu.Unlock()
	for name, unit := range left {
		u.KillUnit(context.Background(), name)
		<-unit.gone
	}
}

func (u *fakeUnits) StartUnit(ctx context.Context, name string) error {
	id := strings.TrimSuffix(strings.TrimPrefix(name, "vm@"), ".service")
	dir := filepath.Join(u.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(u.t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "unit")
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+dir, "NOTIFY_SOCKET="+notify.LocalAddr().String())
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	unit := &fakeUnit{cmd: cmd, gone: make(chan struct{})}
	u.mu.Lock()
	u.running[name] = unit
	u.mu.Unlock()
	go func() {
		cmd.Wait()
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // as of a control group
		os.RemoveAll(dir)
		u.mu.Lock()
		delete(u.running, name)
		u.mu.Unlock()
		notify.Close()
		close(unit.gone)
	}()
	b := make([]byte, 64)
	n, _, err := notify.ReadFromUnix(b)
	if err != nil || string(b[:n]) != sddaemon.SdNotifyReady {
		return fmt.Errorf("the job failed: %q, %w", b[:n], err)
	}
	return nil
}

func (u *fakeUnits) find(name string) *fakeUnit {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.running[name]
}

func (u *fakeUnits) StopUnit(ctx context.Context, name string) error {
	unit := u.find(name)
	if unit == nil {
		return nil
	}
	unit.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-unit.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (u *fakeUnits) KillUnit(_ context.Context, name string) error {
	if unit := u.find(name); unit != nil {
		if err := syscall.Kill(-unit.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

func (u *fakeUnits) SetProperties(_ context.Context, name string, p map[string]any) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.running[name] == nil {
		return fmt.Errorf("there is no unit %s", name)
	}
	u.properties[name] = p
	return nil
}

// superviseUnit is auberge-vm unit with the fake driver.
func superviseUnit() int {
	switch os.Getenv(unitEnv) {
	case "dies":
		return fatal(errors.New("the unit is out of order"))
	}
	unix.Umask(0o007)
	dir, err := vmm.UnitDir()
	if err != nil {
		return fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		return fatal(err)
	}
	cfg, err := vmm.PrepareUnit(dir, uint32(os.Geteuid()))
	if err != nil {
		return fatal(err)
	}
	cfg.Driver, cfg.Backend, cfg.Log = probing{driver{self}}, self, slog.New(slog.DiscardHandler)
	if told, err := sddaemon.SdNotify(true, sddaemon.SdNotifyReady); !told || err != nil {
		return fatal(fmt.Errorf("told %v, %w", told, err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := vmm.NewSupervisor(cfg)
	s.SetGrace(duration(graceEnv), duration(orphanEnv), duration(readyEnv))
	if err := s.Run(ctx); err != nil {
		return fatal(err)
	}
	return 0
}

// A probing finds KVM where the kernel says so.
type probing struct{ driver }

func (probing) Probe(ctx context.Context, kernel string) error {
	b, err := os.ReadFile(kernel)
	switch {
	case err != nil:
		return err
	case string(b) == "waits":
		<-ctx.Done()
		return context.Cause(ctx)
	case string(b) != "boots":
		return fmt.Errorf("no guest came up: %s", b)
	}
	return nil
}
