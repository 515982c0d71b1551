package vmm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
)

// launchUnit launches a VM that must start, in a daemon's directory of its own.
func launchUnit(t *testing.T, l *vmm.Launcher, words string) *vmm.Machine {
	t.Helper()
	m, err := l.Launch(t.Context(), unitDir(t), vmSpec(words), []*os.File{openNull(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func unitDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), vmSpec("").ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func unitOf(m *vmm.Machine) string { return "vm@" + m.Spec.ID + ".service" }

// checkGone waits until a unit has gone and looks for what is left.
func checkGone(t *testing.T, u *fakeUnits, m *vmm.Machine) {
	t.Helper()
	if unit := u.find(unitOf(m)); unit != nil {
		select {
		case <-unit.gone:
		case <-time.After(patience):
			t.Fatal("the unit does not end")
		}
	}
	// The stand-in for a control group does not wait for its members.
	deadline := time.Now().Add(patience)
	for tick := time.Tick(time.Millisecond); alive(m.PID()); <-tick {
		if time.Now().After(deadline) {
			t.Fatal("the hypervisor runs on")
		}
	}
}

// A VM in a unit is like any other, and a daemon that comes later finds it.
func TestUnit(t *testing.T) {
	l, u := newUnits(t)
	m := launchUnit(t, l, "print:hello")
	awaitConsole(t, m, "hello\n")
	want := map[string]any{"MemoryMax": uint64(m.Spec.MemoryMiB+256+m.Spec.MemoryMiB/64+8*int64(m.Spec.CPUs)+1024) << 20,
		"TasksMax": uint64(192 + m.Spec.CPUs), "CPUQuotaPerSecUSec": uint64(m.Spec.CPUs+1) * 1e6}
	if d := cmp.Diff(want, u.properties[unitOf(m)]); d != "" {
		t.Errorf("limits: %s", d)
	}
	// The record is the supervisor's alone.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
	if err != nil || len(fds) == 0 {
		t.Fatalf("descriptors of the hypervisor: %v, %v", fds, err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, m.Dir) {
			t.Errorf("the hypervisor has %s open", to)
		}
	}
	m.Release()

	again, err := l.Attach(t.Context(), m.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(jsonOf(t, m.Spec), jsonOf(t, again.Spec)); d != "" || again.PID() != m.PID() {
		t.Errorf("found process %d, not %d, %s", again.PID(), m.PID(), d)
	}
	checkEndpoints(t, again)
	c, err := again.Dial(t.Context(), guestPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := again.Stop(t.Context(), "enough"); err != nil {
		t.Fatal(err)
	}
	checkGone(t, u, again)
	if e, err := vmm.ReadExit(m.Dir); err != nil || e.Reason != vmm.ExitStopped || e.Message != "enough" {
		t.Errorf("the record says %+v, %v", e, err)
	}
	if _, err := l.Attach(t.Context(), m.Dir); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("attach to what has gone: %v", err)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The directory of a unit goes with the unit. Why a VM ended while no daemon
// ran is still told.
func TestUnitEndsWithoutDaemon(t *testing.T) {
	l, u := newUnits(t)
	m := launchUnit(t, l, "print:last_words")
	awaitConsole(t, m, "last_words\n")
	if _, err := vmm.ReadExit(m.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record of a VM that runs: %v", err)
	}
	m.Release()
	if err := syscall.Kill(m.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	checkGone(t, u, m)
	if left, err := os.ReadDir(u.dir); err != nil || len(left) > 0 {
		t.Errorf("left of the unit: %v, %v", left, err)
	}
	if _, err := l.Attach(t.Context(), m.Dir); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("attach: %v", err)
	}
	e, err := vmm.ReadExit(m.Dir)
	if err != nil || e.Reason != vmm.ExitCrashed || string(e.Console) != "last_words\n" {
		t.Errorf("the record says %+v, %v", e, err)
	}
}

// Killing is the service manager's, for a daemon has no right to.
func TestUnitKill(t *testing.T) {
	l, u := newUnits(t)
	m := launchUnit(t, l, "")
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if e := await(t, m); e.Reason != vmm.ExitSupervisor {
		t.Errorf("it ended by %+v", e)
	}
	checkGone(t, u, m)
}

// A VM whose supervisor does not answer is ended by its unit, whether its
// processes are known or not.
func TestUnitLost(t *testing.T) {
	l, u := newUnits(t)
	m := launchUnit(t, l, "")
	m.Release()
	pid := u.find(unitOf(m)).cmd.Process.Pid
	standStill(t, pid)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := l.Attach(ctx, m.Dir); err == nil || errors.Is(err, vmm.ErrGone) {
		t.Fatalf("attach to one that does not answer: %v", err)
	}
	if !l.CanEnd(vmm.Processes{}) {
		t.Fatal("a unit cannot be ended")
	}
	if err := l.End(t.Context(), m.Dir, vmm.Processes{}); err != nil {
		t.Fatal(err)
	}
	if unit := u.find(unitOf(m)); unit != nil {
		t.Error("the unit runs on")
	}
	if err := l.End(t.Context(), m.Dir, vmm.Processes{}); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// standStill stops a process and waits until each of its threads stands.
func standStill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for tick := time.Tick(time.Millisecond); ; <-tick {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		stand := len(threads) > 0
		for _, thread := range threads {
			b, err := os.ReadFile(thread)
			if err == nil && !bytes.Contains(b[bytes.LastIndexByte(b, ')')+1:], []byte(" T ")) {
				stand = false
			}
		}
		if stand {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the supervisor does not stand still")
		}
	}
}

func TestUnitDoesNotStart(t *testing.T) {
	t.Setenv(unitEnv, "dies")
	l, u := newUnits(t)
	dir := unitDir(t)
	_, err := l.Launch(t.Context(), dir, vmSpec(""), []*os.File{openNull(t)})
	if err == nil || !strings.Contains(err.Error(), "vm@"+filepath.Base(dir)+".service") {
		t.Errorf("the error names no unit: %v", err)
	}
	if u.find("vm@"+filepath.Base(dir)+".service") != nil {
		t.Error("the unit is left")
	}
}

// A VM that does not start leaves no unit, and says why.
func TestUnitLaunchFails(t *testing.T) {
	for words, want := range map[string]string{"no program": "/nowhere/hypervisor", "no command": "there is no such hypervisor"} {
		l, u := newUnits(t)
		dir := unitDir(t)
		_, err := l.Launch(t.Context(), dir, vmSpec(words), []*os.File{openNull(t)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", words, err)
		}
		if u.find("vm@"+filepath.Base(dir)+".service") != nil {
			t.Errorf("%s: the unit is left", words)
		}
		if e, err := vmm.ReadExit(dir); err != nil || !strings.Contains(e.Message, want) {
			t.Errorf("%s: the record says %+v, %v", words, e, err)
		}
	}
}

// An instance's name never is anything but a VM's ID.
func TestUnitNames(t *testing.T) {
	l, _ := newUnits(t)
	for _, id := range []string{"a b", "..", "a/../b", "A", "x@y", strings.Repeat("a", 40)} {
		s := vmSpec("")
		s.ID = id
		if _, err := l.Launch(t.Context(), filepath.Join(t.TempDir(), id), s, nil); err == nil {
			t.Errorf("%q was launched", id)
		}
	}
	if _, err := l.Launch(t.Context(), filepath.Join(t.TempDir(), "other"), vmSpec(""), nil); err == nil {
		t.Error("a VM was launched in another's directory")
	}
}

func TestUnitProbe(t *testing.T) {
	l, u := newUnits(t)
	for kernel, want := range map[string]vmm.Accel{"boots": vmm.AccelKVM, "does nothing": vmm.AccelTCG} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "kernel"), []byte(kernel), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := l.ProbeAccel(t.Context(), filepath.Join(dir, "kernel"), filepath.Join(dir, "cache"))
		if err != nil || c.Accel != want || want == vmm.AccelTCG && !strings.Contains(c.Why, kernel) {
			t.Errorf("%s: %+v, %v", kernel, c, err)
		}
	}
	if len(u.running) > 0 {
		t.Errorf("left: %v", u.running)
	}
}

// A probe that hangs ends with its caller, and the unit with it.
func TestUnitProbeGivenUp(t *testing.T) {
	l, u := newUnits(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kernel"), []byte("waits"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if c, err := l.ProbeAccel(ctx, filepath.Join(dir, "kernel"), filepath.Join(dir, "cache")); err == nil {
		t.Errorf("it found %+v", c)
	}
	if len(u.running) > 0 {
		t.Errorf("left: %v", u.running)
	}
}

// The daemon's user may pass through the directory and use the sockets there;
// files are the unit's own.
func TestUnitAccess(t *testing.T) {
	l, u := newUnits(t)
	m := launchUnit(t, l, "")
	defer end(t, m)
	dir := filepath.Join(u.dir, m.Spec.ID)
	me := uint32(os.Geteuid())
	for path, want := range map[string][]byte{
		dir: vmm.EncodeACL(me, 1), filepath.Join(dir, vmm.ControlSocket): socketACL(me), filepath.Join(dir, vmm.VsockSocket): socketACL(me),
	} {
		b := make([]byte, 256)
		n, err := unix.Getxattr(path, "system.posix_acl_access", b)
		if err != nil || !bytes.Equal(b[:max(n, 0)], want) {
			t.Errorf("%s: %x, %v, want %x", path, b[:max(n, 0)], err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "secret")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("a file of the VM's: %v, %v", fi.Mode(), err)
	}
}

// socketACL is what a socket gets of the directory's default.
func socketACL(user uint32) []byte { return vmm.EncodeACL(user, 6) }
