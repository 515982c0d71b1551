package vmm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// launch launches a VM that must start; it ends with the test.
func launch(t *testing.T, words string) *vmm.Machine {
	t.Helper()
	m, err := newLauncher(t).Launch(t.Context(), t.TempDir(), vmSpec(words), []*os.File{openNull(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	return m
}

// end kills what is left of a VM.
func end(t *testing.T, m *vmm.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	default:
		m.Kill()
		await(t, m)
	}
}

// await waits for a VM's end.
func await(t *testing.T, m *vmm.Machine) vmm.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("the VM does not end")
	}
	return m.Exit()
}

// fate launches a VM that ends by itself, perhaps before Launch has returned,
// and returns its exit record.
func fate(t *testing.T, words string) vmm.Exit {
	t.Helper()
	dir := t.TempDir()
	m, err := newLauncher(t).Launch(t.Context(), dir, vmSpec(words), []*os.File{openNull(t)})
	if err == nil {
		return await(t, m)
	}
	e, rerr := vmm.ReadExit(dir)
	if rerr != nil || err.Error() != e.Message {
		t.Fatalf("Launch says %q, the record %q, %v", err, e.Message, rerr)
	}
	return e
}

// parent returns a process's parent, zero when it runs no more.
func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command in brackets may contain anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if f[0] == "Z" || f[0] == "X" {
		return 0
	}
	ppid, _ := strconv.Atoi(f[1])
	return ppid
}

func alive(pid int) bool { return parent(pid) != 0 }

// awaitDeath waits for a process that has closed its files to be gone, which
// is the next thing it does.
func awaitDeath(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); alive(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is left", pid)
		}
	}
}

// backendPID finds the supervisor's other child.
func backendPID(m *vmm.Machine) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != m.PID() && parent(pid) == m.SupervisorPID() {
			return pid
		}
	}
	return -1
}

func TestLaunch(t *testing.T) {
	m := launch(t, "print:hello")
	if !alive(m.PID()) || !alive(m.SupervisorPID()) || !alive(backendPID(m)) {
		t.Fatal("something does not run")
	}
	// A stream to the guest and back.
	c, err := m.Dial(t.Context(), guestPort)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "echo"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "echo" {
		t.Errorf("the guest answered %q, %v", b, err)
	}
	c.Close()
	if _, err := m.Dial(t.Context(), 1); !errors.Is(err, vsock.ErrRefused) {
		t.Errorf("a port on which the guest does not listen: %v", err)
	}
	checkEndpoints(t, m)
	if m.Listener(1) != nil {
		t.Error("a port that was not asked for has a listener")
	}
	awaitConsole(t, m, "hello\n")
	if err := m.Stop(t.Context(), "the test is over"); err != nil {
		t.Fatal(err)
	}
	e := m.Exit()
	if e.Reason != vmm.ExitStopped || e.Message != "the test is over" || string(e.Console) != "hello\n" || e.Time.IsZero() {
		t.Errorf("the exit is %+v", e)
	}
	stored, err := vmm.ReadExit(m.Dir)
	if err != nil || stored.Reason != e.Reason || !stored.Time.Equal(e.Time) {
		t.Errorf("the record is %+v, %v", stored, err)
	}
	awaitDeath(t, m.PID())
	if console, err := m.Console(t.Context()); err != nil || string(console) != "hello\n" {
		t.Errorf("the console afterwards: %q, %v", console, err)
	}
	if _, err := m.Listener(7777).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept afterwards: %v", err)
	}
	if err := m.Stop(t.Context(), "again"); err != nil {
		t.Errorf("stop afterwards: %v", err)
	}
}

// checkEndpoints checks that streams from the guest arrive on the right port
// with its identity.
func checkEndpoints(t *testing.T, m *vmm.Machine) {
	t.Helper()
	for _, port := range []uint32{7777, 7778} {
		call, err := net.Dial("unix", vsock.EndpointPath(filepath.Join(m.Sockets(), vmm.VsockSocket), port))
		if err != nil {
			t.Fatal(err)
		}
		defer call.Close()
		got, err := m.Listener(port).Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if p, _ := vsock.PeerOf(got); p != (vsock.Addr{VM: "abc123", CID: 33}) || got.LocalAddr() != net.Addr(vsock.Addr{CID: 2, Port: port}) {
			t.Errorf("from %v to %v", p, got.LocalAddr())
		}
	}
}

// awaitConsole asks until the console shows something.
func awaitConsole(t *testing.T, m *vmm.Machine, want string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		console, err := m.Console(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasSuffix(console, []byte(want)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the console shows %q, not %q", console, want)
		}
	}
}

// Why a VM ended, by what happened to it.
func TestExitReasons(t *testing.T) {
	kill := func(pid func(*vmm.Machine) int, sig syscall.Signal) func(*testing.T, *vmm.Machine) {
		return func(t *testing.T, m *vmm.Machine) {
			if err := syscall.Kill(pid(m), sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		do      func(*testing.T, *vmm.Machine)
		reason  vmm.ExitReason
		message string
	}{
		"hypervisor killed":   {kill((*vmm.Machine).PID, syscall.SIGKILL), vmm.ExitCrashed, "signal: killed"},
		"backend killed":      {kill(backendPID, syscall.SIGKILL), vmm.ExitBackend, "vsock backend ended"},
		"supervisor killed":   {kill((*vmm.Machine).SupervisorPID, syscall.SIGKILL), vmm.ExitSupervisor, "supervisor was killed"},
		"supervisor told":     {kill((*vmm.Machine).SupervisorPID, syscall.SIGTERM), vmm.ExitStopped, "told to end"},
		"stop without reason": {func(t *testing.T, m *vmm.Machine) { m.Stop(t.Context(), "") }, vmm.ExitStopped, "stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			m := launch(t, "")
			pids := []int{m.PID(), m.SupervisorPID(), backendPID(m)}
			test.do(t, m)
			if e := await(t, m); e.Reason != test.reason || !strings.Contains(e.Message, test.message) {
				t.Errorf("the exit is %s, %q; want %s, %q", e.Reason, e.Message, test.reason, test.message)
			}
			for _, pid := range pids {
				awaitDeath(t, pid)
			}
		})
	}
}

// Why a VM ended that ended by itself, however soon.
func TestEndsByItself(t *testing.T) {
	for words, want := range map[string]vmm.Exit{
		"poweroff":                       {Reason: vmm.ExitGuest, Message: "the guest powered off"},
		"leave":                          {Reason: vmm.ExitCrashed, Message: "without the guest's doing"},
		"complain:no-such-CPU exit:1":    {Reason: vmm.ExitCrashed, Message: "exit status 1: no-such-CPU"},
		"print:panic complain:x exit:77": {Reason: vmm.ExitCrashed, Message: "exit status 77: x", Console: []byte("panic\n")},
		"no command":                     {Reason: vmm.ExitCrashed, Message: "no such hypervisor"},
		"no program":                     {Reason: vmm.ExitCrashed, Message: "start the hypervisor"},
	} {
		for range 2 {
			e := fate(t, words)
			if e.Reason != want.Reason || !strings.Contains(e.Message, want.Message) || string(e.Console) != string(want.Console) {
				t.Errorf("%s: %s, %q, console %q", words, e.Reason, e.Message, e.Console)
			}
		}
	}
	// Without a monitor the exit status has to do.
	t.Setenv(monitorEnv, "none")
	if e := fate(t, "exit:0"); e.Reason != vmm.ExitGuest {
		t.Errorf("exit status 0 without a monitor: %s, %q", e.Reason, e.Message)
	}
	if e := fate(t, "exit:1"); e.Reason != vmm.ExitCrashed {
		t.Errorf("exit status 1 without a monitor: %s, %q", e.Reason, e.Message)
	}
}

// A start fails with the reason, and nothing of it is left.
func TestLaunchFails(t *testing.T) {
	try := func(s *vmm.Spec, files []*os.File) error {
		t.Helper()
		m, err := newLauncher(t).Launch(t.Context(), t.TempDir(), s, files)
		if err == nil {
			end(t, m)
			t.Fatal("it started")
		}
		return err
	}
	null := openNull(t)
	if err := try(vmSpec(""), nil); !strings.Contains(err.Error(), "kernel's descriptor") {
		t.Errorf("without files: %v", err)
	}
	s := vmSpec("")
	s.Vsock.Ports = []uint32{7777, 7777}
	if err := try(s, []*os.File{null}); !strings.Contains(err.Error(), "7777 is asked for twice") {
		t.Errorf("a port twice: %v", err)
	}
	s = vmSpec(strings.Repeat("x", vmm.MaxPacket))
	if err := try(s, []*os.File{null}); !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a huge spec: %v", err)
	}
	t.Setenv(backendEnv, "dies")
	if err := try(vmSpec(""), []*os.File{null}); !strings.Contains(err.Error(), "ended at once (exit status 1): the backend is out of order") {
		t.Errorf("a backend that dies: %v", err)
	}
	t.Setenv(backendEnv, "silent")
	t.Setenv(readyEnv, "50ms")
	if err := try(vmSpec(""), []*os.File{null}); !strings.Contains(err.Error(), "did not create") {
		t.Errorf("a backend that does not listen: %v", err)
	}
	l := &vmm.Launcher{Program: "/nowhere/auberge-vm"}
	if _, err := l.Launch(t.Context(), t.TempDir(), vmSpec(""), []*os.File{null}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the supervisor's program: %v", err)
	}
	l = &vmm.Launcher{Program: "/bin/false"}
	if _, err := l.Launch(t.Context(), t.TempDir(), vmSpec(""), []*os.File{null}); err == nil || !strings.Contains(err.Error(), "supervisor was killed") {
		t.Errorf("a supervisor that ends at once: %v", err)
	}
}

// A directory is for one VM: what is in it is not overwritten.
func TestLaunchInAUsedDirectory(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "supervisor.log")); err != nil {
		t.Fatal(err)
	}
	if m, err := newLauncher(t).Launch(t.Context(), dir, vmSpec(""), []*os.File{openNull(t)}); err == nil {
		end(t, m)
		t.Error("the log went through a link")
	}
	if b, err := os.ReadFile(secret); err != nil || len(b) > 0 {
		t.Errorf("the link's target has %q, %v", b, err)
	}
}

func TestSecondLaunchIsRefused(t *testing.T) {
	m := launch(t, "")
	null := openNull(t)
	socket := filepath.Join(m.Dir, vmm.ControlSocket)
	if _, err := vmm.Call(t.Context(), socket, vmm.Request{Op: vmm.OpLaunch, Spec: vmSpec("")}, []*os.File{null}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second VM: %v", err)
	}
	if _, err := vmm.Call(t.Context(), socket, vmm.Request{Op: "dance"}, nil); err == nil || !strings.Contains(err.Error(), `"dance"`) {
		t.Errorf("an unknown request: %v", err)
	}
	if !alive(m.PID()) {
		t.Error("the first VM has ended")
	}
}

// Requests that are none do no harm, and cost no descriptor.
func TestBadRequests(t *testing.T) {
	m := launch(t, "")
	null := openNull(t)
	count := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.SupervisorPID()))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	status := func() {
		t.Helper()
		if _, err := vmm.Call(t.Context(), filepath.Join(m.Dir, vmm.ControlSocket), vmm.Request{Op: vmm.OpStatus}, nil); err != nil {
			t.Fatal(err)
		}
	}
	status()
	before := count()
	for _, data := range []string{"", "garbage", "[]", `{"op":7}`, `{"op":"launch"}`, `{"op":"console"}`} {
		c, err := net.Dial("unixpacket", filepath.Join(m.Dir, vmm.ControlSocket))
		if err != nil {
			t.Fatal(err)
		}
		send(t, c.(*net.UnixConn), data, rightsOf(null, 7))
		io.Copy(io.Discard, c) // until the supervisor is done with it
		c.Close()
	}
	status()
	// Connections come and go; what was sent would be forty.
	if after := count(); after > before+5 {
		t.Errorf("the supervisor had %d descriptors, now %d", before, after)
	}
}

// Each way of ending a hypervisor gets its time, and the last one works.
func TestStopLadder(t *testing.T) {
	t.Setenv(graceEnv, "50ms")
	for name, test := range map[string]struct{ monitor, words string }{
		"a monitor that hangs": {"hangs", ""},
		"no monitor":           {"none", ""},
		"a monitor that hangs, and SIGTERM ignored": {"hangs", "deaf print:ready"},
		"no monitor, and SIGTERM ignored":           {"none", "deaf print:ready"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(monitorEnv, test.monitor)
			m := launch(t, test.words)
			if test.words != "" {
				awaitConsole(t, m, "ready\n")
			}
			if err := m.Stop(t.Context(), "enough"); err != nil {
				t.Fatal(err)
			}
			if e := m.Exit(); e.Reason != vmm.ExitStopped || e.Message != "enough" {
				t.Errorf("the exit is %s, %q", e.Reason, e.Message)
			}
			awaitDeath(t, m.PID())
		})
	}
}

// A stop that comes before there is a hypervisor is not forgotten.
func TestStopWhileLaunching(t *testing.T) {
	for name, stop := range map[string]func(dir string, pid int) error{
		"by request": func(dir string, _ int) error {
			_, err := vmm.Call(t.Context(), filepath.Join(dir, vmm.ControlSocket), vmm.Request{Op: vmm.OpStop, Reason: "changed my mind"}, nil)
			return err
		},
		"by signal": func(_ string, pid int) error { return syscall.Kill(pid, syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			fifos := t.TempDir()
			for _, f := range []string{"runs", "go"} {
				if err := syscall.Mkfifo(filepath.Join(fifos, f), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv(backendEnv, "waits:"+fifos)
			l := newLauncher(t)
			dir := t.TempDir()
			type result struct {
				m   *vmm.Machine
				err error
			}
			done := make(chan result, 1)
			go func() {
				m, err := l.Launch(t.Context(), dir, vmSpec(""), []*os.File{openNull(t)})
				done <- result{m, err}
			}()
			f, err := os.Open(filepath.Join(fifos, "runs"))
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			pid := supervisorIn(t, dir)
			if err := stop(dir, pid); err != nil {
				t.Fatal(err)
			}
			if name == "by signal" {
				awaitSignal(t, pid)
			}
			f, err = os.OpenFile(filepath.Join(fifos, "go"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			var e vmm.Exit
			select {
			case r := <-done:
				if r.err == nil {
					e = await(t, r.m)
					break
				}
				if e, err = vmm.ReadExit(dir); err != nil {
					t.Fatalf("%v, then %v", r.err, err)
				}
			case <-time.After(patience):
				t.Fatal("Launch hangs")
			}
			if e.Reason != vmm.ExitStopped {
				t.Errorf("the exit is %s, %q", e.Reason, e.Message)
			}
		})
	}
}

// supervisorIn finds the supervisor by its working directory.
func supervisorIn(t *testing.T, dir string) int {
	t.Helper()
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if cwd, rerr := os.Readlink(filepath.Join("/proc", e.Name(), "cwd")); err == nil && rerr == nil && cwd == dir && parent(pid) == os.Getpid() {
			return pid
		}
	}
	t.Fatal("there is no supervisor")
	return 0
}

// awaitSignal waits until a process has no signal waiting for it.
func awaitSignal(t *testing.T, pid int) {
	t.Helper()
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "ShdPnd:\t0000000000000000") {
			return
		}
	}
}

// A guest may write what it likes: the end of it is kept, and no more.
func TestConsoleFlood(t *testing.T) {
	m := launch(t, "flood:4000 print:last") // 4 MiB
	awaitConsole(t, m, "xxx\nlast\n")
	console, err := m.Console(t.Context())
	if err != nil || len(console) != vmm.ConsoleSize {
		t.Errorf("%d bytes of console, %v", len(console), err)
	}
	if err := m.Stop(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if e := m.Exit(); len(e.Console) != vmm.ConsoleSize || !bytes.HasSuffix(e.Console, []byte("last\n")) {
		t.Errorf("%d bytes of console in the record", len(e.Console))
	}
}

// A process that holds on to what it inherited delays a VM's end, but not for
// good.
func TestStraggler(t *testing.T) {
	l := newLauncher(t)
	l.SetGrace(100 * time.Millisecond)
	pidFile := filepath.Join(t.TempDir(), "pid")
	m, err := l.Launch(t.Context(), t.TempDir(), vmSpec("straggler:"+pidFile+" print:ready"), []*os.File{openNull(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, m)
	awaitConsole(t, m, "ready\n")
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	if !alive(pid) {
		t.Fatal("there is no straggler")
	}
	m.Kill()
	if e := await(t, m); e.Reason != vmm.ExitSupervisor {
		t.Errorf("the exit is %s, %q", e.Reason, e.Message)
	}
}

// A supervisor that is given no VM ends by itself.
func TestSupervisorWithoutVM(t *testing.T) {
	t.Setenv(orphanEnv, "10ms")
	dir := t.TempDir()
	m, err := newLauncher(t).StartSupervisor(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Await(); err != nil {
		t.Fatal(err)
	}
	if e, err := vmm.ReadExit(dir); err != nil || e.Reason != vmm.ExitStopped || !strings.Contains(e.Message, "given no VM") {
		t.Errorf("the exit is %+v, %v", e, err)
	}
}
