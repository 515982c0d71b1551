package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/client/vsh"
	"github.com/auberge-vm/auberge/guest/vshd"
)

// TestMain is vsh itself when the tests run it.
func TestMain(m *testing.M) {
	if os.Getenv("VSH_TEST_MAIN") != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

func TestCommandLine(t *testing.T) {
	t.Setenv("TERM", "xterm")
	type opts = vsh.Options
	for _, tc := range []struct {
		args string
		want config
	}{
		{"vm", config{bus: "system", vm: "vm"}},
		{"--vm_name vm --owner_id abc", config{bus: "system", vm: "vm", owner: "abc"}},
		{"--vm-name=vm --owner-id=abc", config{bus: "system", vm: "vm", owner: "abc"}},
		{"--bus session vm", config{bus: "session", vm: "vm"}},
		{"vm --bus unix:path=/x", config{bus: "unix:path=/x", vm: "vm"}},
		{"vm penguin", config{bus: "system", vm: "vm", opts: opts{Target: "penguin"}}},
		{"vm --target_container penguin", config{bus: "system", vm: "vm", opts: opts{Target: "penguin"}}},
		{"vm --vm-name vm", config{bus: "system", vm: "vm"}},
		{"vm --user u --cwd /d", config{bus: "system", vm: "vm", opts: opts{User: "u", Cwd: "/d"}}},
		{"vm --cwd 42", config{bus: "system", vm: "vm", opts: opts{CwdPID: 42}}},
		{"vm -- ls -l --user x", config{bus: "system", vm: "vm", opts: opts{Argv: []string{"ls", "-l", "--user", "x"}}}},
		{"vm -- A=1 B=2 ls", config{bus: "system", vm: "vm", opts: opts{Env: map[string]string{"A": "1", "B": "2"}, Argv: []string{"ls"}}}},
		{"--vm-name vm -- ls", config{bus: "system", vm: "vm", opts: opts{Argv: []string{"ls"}}}},
		{"vm -- ls -- x", config{bus: "system", vm: "vm", opts: opts{Argv: []string{"ls", "--", "x"}}}},
		{"-T vm", config{bus: "system", vm: "vm"}},
		{"-t vm", config{bus: "system", vm: "vm", opts: opts{Pty: true, Env: map[string]string{"TERM": "xterm"}}}},
		{"-t vm -- TERM=dumb", config{bus: "system", vm: "vm", opts: opts{Pty: true, Env: map[string]string{"TERM": "dumb"}}}},
	} {
		var got *config
		code := -1
		cmd := newCommand(func(c *config) error { got = c; return nil }, &code)
		cmd.SetArgs(strings.Fields(tc.args))
		if err := cmd.Execute(); err != nil {
			t.Errorf("%q: %v", tc.args, err)
			continue
		}
		got.opts.Stdin, got.opts.Stdout, got.opts.Stderr = nil, nil, nil
		if len(got.opts.Argv) == 0 {
			got.opts.Argv = nil
		}
		if !reflect.DeepEqual(*got, tc.want) {
			t.Errorf("%q: %+v, want %+v", tc.args, *got, tc.want)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"", "which VM?"},
		{"-- ls", "which VM?"},
		{"vm penguin ls", `unexpected argument "ls": put -- before a command`},
		{"vm --vm-name other", `both "other" and "vm" are named`},
		{"vm a --target-container b", `both "b" and "a" are named`},
		{"-t -T vm", "exclude each other"},
		{"--cid 33", "any user of this machine can dial"},
		{"vm --nonsense", "unknown flag: --nonsense"},
	} {
		code, err := run(t.Context(), strings.Fields(tc.args))
		if code != vsh.ExitLost || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: code %d, %v; want %q", tc.args, code, err, tc.want)
		}
	}
}

// startBus runs a private dbus-daemon and returns its address.
func startBus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	text := `<busconfig><listen>` + address + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("dbus-daemon, which the tests need: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return address
}

// A concierge stands in for the real one: it gives streams to a vshd of this
// process, which is real.
type concierge struct {
	vshd string

	mu   sync.Mutex
	sent *os.File // godbus leaves the closing to us, and does not say when
}

// release closes our copy of the stream that was handed out.
func (c *concierge) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent != nil {
		c.sent.Close()
		c.sent = nil
	}
}

func (c *concierge) ConnectVsock(vm, owner string, port uint32) (dbus.UnixFD, *dbus.Error) {
	fail := func(name, text string) (dbus.UnixFD, *dbus.Error) {
		return -1, dbus.NewError("org.freedesktop.DBus.Error."+name, []any{text})
	}
	switch {
	case vm == "stopped":
		return fail("Failed", `VM "stopped" is not running: start it with vmc start stopped`)
	case owner == "other":
		return fail("AccessDenied", "VMs of user other need the administrator's right")
	case vm != "vm" || port != 9001:
		return fail("Failed", fmt.Sprintf("you have no VM %q", vm))
	}
	conn, err := net.Dial("unix", c.vshd)
	if err != nil {
		return fail("Failed", err.Error())
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return fail("Failed", err.Error())
	}
	c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = f
	return dbus.UnixFD(f.Fd()), nil
}

// host starts a bus with a concierge and a guest.
func host(t *testing.T) (address string, c *concierge) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- vshd.New(vshd.WithLogger(slog.New(slog.DiscardHandler))).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})

	address = startBus(t)
	conn, err := bus.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c = &concierge{vshd: l.Addr().String()}
	t.Cleanup(c.release)
	err = conn.Export(c, "/org/chromium/VmConcierge", "io.github.auberge_vm.Concierge1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName("org.chromium.VmConcierge", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return address, c
}

// command is vsh in a process of its own, as the user of the tests.
func command(t *testing.T, bus string, args ...string) *exec.Cmd {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, append([]string{"--bus", bus, "--user", u.Username}, args...)...)
	cmd.Env = append(os.Environ(), "VSH_TEST_MAIN=1", "TERM=xterm", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func TestCommandsInTheGuest(t *testing.T) {
	address, _ := host(t)
	for _, tc := range []struct {
		name  string
		args  []string
		input string
		out   string
		errs  string
		code  int
	}{
		{"exit code", []string{"vm", "--", "sh", "-c", "echo out; echo err >&2; exit 9"}, "", "out\n", "err\n", 9},
		{"input", []string{"vm", "--", "cat"}, "some\nlines\n", "some\nlines\n", "", 0},
		{"environment", []string{"vm", "--", "A=b c", "sh", "-c", `echo "$A"`}, "", "b c\n", "", 0},
		{"directory", []string{"vm", "--cwd", "/usr", "--", "pwd"}, "", "/usr\n", "", 0},
		{"terminal by force", []string{"-t", "vm", "--", "sh", "-c", "tty >/dev/null && echo $TERM"}, "", "xterm\r\n", "", 0},
		{"signal", []string{"vm", "--", "sh", "-c", "kill -TERM $$"}, "", "", "", 143},
		{"no such command", []string{"vm", "--", "no-such-command"}, "", "", "vshd: no-such-command: command not found\n", 127},
		{"no such user", []string{"--user", "no-such-user", "vm", "--", "true"}, "", "", "vsh: no user \"no-such-user\" in this VM\n", 123},
		{"no such VM", []string{"nemo"}, "", "", "vsh: cannot connect to VM \"nemo\": you have no VM \"nemo\"\n", 123},
		{"a VM that does not run", []string{"stopped"}, "", "", "VM \"stopped\" is not running", 123},
		{"somebody else's VM", []string{"vm", "--owner_id", "other"}, "", "", "access denied: VMs of user other", 123},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := command(t, address, tc.args...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tc.input), &out, &errs
			err := cmd.Run()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tc.code || out.String() != tc.out || !strings.Contains(errs.String(), tc.errs) {
				t.Errorf("code %d, stdout %q, stderr %q; want %d, %q, %q", got, out.String(), errs.String(), tc.code, tc.out, tc.errs)
			}
		})
	}
}

func TestBusWithoutConcierge(t *testing.T) {
	address := startBus(t)
	for _, tc := range []struct{ bus, want string }{
		{address, "vm_concierge is not running on this bus"},
		{"/no/such/bus", "is there a bus at this address?"},
	} {
		code, err := run(t.Context(), []string{"--bus", tc.bus, "vm"})
		if code != vsh.ExitLost || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("code %d, %v; want %q", code, err, tc.want)
		}
	}
	t.Run("but another's", func(t *testing.T) {
		conn, err := bus.Connect(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.RequestName("org.chromium.VmConcierge", dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
		_, err = run(t.Context(), []string{"--bus", address, "vm"})
		if err == nil || !strings.Contains(err.Error(), "not Auberge's") {
			t.Errorf("%v", err)
		}
	})
}

func TestHelpIsASuccess(t *testing.T) {
	cmd := command(t, "system", "--help")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "vsh [flags] [VM [CONTAINER]]") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A person at a terminal, with vsh in a session of its own.
type person struct {
	t      *testing.T
	screen *os.File
	seen   strings.Builder
}

func sit(t *testing.T, cmd *exec.Cmd) *person {
	t.Helper()
	screen, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 25, Cols: 90})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		screen.Close()
	})
	return &person{t: t, screen: screen}
}

// sees reads the screen until it shows a text, and forgets what came before.
func (p *person) sees(text string) {
	p.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(p.seen.String(), text) {
		n, err := p.screen.Read(buf)
		p.seen.Write(buf[:n])
		if err != nil {
			p.t.Fatalf("waiting for %q: %v after %q", text, err, p.seen.String())
		}
	}
	_, rest, _ := strings.Cut(p.seen.String(), text)
	p.seen.Reset()
	p.seen.WriteString(rest)
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := p.screen.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// cooked reports whether the terminal is in the mode of a shell's.
func (p *person) cooked() bool {
	p.t.Helper()
	mode, err := unix.IoctlGetTermios(int(p.screen.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	const flags = unix.ICANON | unix.ECHO | unix.ISIG
	return mode.Lflag&flags == flags
}

// interactive is a shell in the guest with a prompt that shows.
func interactive(t *testing.T, address string) *exec.Cmd {
	return command(t, address, "vm", "--", "PS1=prompt> ", "sh", "-i")
}

func TestInteractiveShell(t *testing.T) {
	address, _ := host(t)
	cmd := interactive(t, address)
	p := sit(t, cmd)
	p.sees("prompt> ")
	if p.cooked() {
		t.Error("the terminal is not raw")
	}
	p.types("stty size\r")
	p.sees("25 90\r\n")
	p.sees("prompt> ")
	p.types(`sh -c 'trap "stty size; kill \$!" WINCH; sleep 300 & echo ready; wait'` + "\r")
	p.sees("ready\r\n")
	if err := pty.Setsize(p.screen, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	p.sees("40 120\r\n")
	p.sees("prompt> ")
	p.types("sh -c 'echo started; exec sleep 300'\r")
	p.sees("started\r\n")
	p.types("\x03")
	p.sees("prompt> ")
	p.types("echo $?; exit 7\r")
	p.sees("130\r\n")
	err := cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("code %d, %v", code, err)
	}
	if !p.cooked() {
		t.Error("the terminal is left raw")
	}
}

func TestTerminatedClientRestoresTheTerminalAndEndsTheShell(t *testing.T) {
	address, concierge := host(t)
	for _, tc := range []struct {
		sig  syscall.Signal
		code int
	}{
		{syscall.SIGTERM, 143},
		{syscall.SIGHUP, 129},
		{syscall.SIGKILL, -1}, // after which nobody restores anything
	} {
		cmd := interactive(t, address)
		p := sit(t, cmd)
		p.sees("prompt> ")
		concierge.release()
		shell := guestShell(t)
		if err := cmd.Process.Signal(tc.sig); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != tc.code {
			t.Errorf("%v: code %d, want %d", tc.sig, code, tc.code)
		}
		if tc.sig != syscall.SIGKILL && !p.cooked() {
			t.Errorf("%v: the terminal is left raw", tc.sig)
		}
		shell.gone()
	}
}

// A guestProcess is a process of the guest, which here is this machine.
type guestProcess struct {
	t  *testing.T
	fd int
}

// guestShell finds the shell of the session: the only child of this process,
// which runs the vshd, that is an interactive shell.
func guestShell(t *testing.T) guestProcess {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		children, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(children)) {
			if line, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || string(line) != "sh\x00-i\x00" {
				continue
			}
			var n int
			fmt.Sscan(pid, &n)
			fd, err := unix.PidfdOpen(n, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			return guestProcess{t, fd}
		}
	}
	t.Fatal("no shell in the guest")
	return guestProcess{}
}

func (g guestProcess) gone() {
	g.t.Helper()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}}, -1)
		if err == nil {
			return
		}
		if err != unix.EINTR {
			g.t.Fatal(err)
		}
	}
}
