package core

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"golang.org/x/sys/unix"
)

// newTable is for tests in a process of their own.
func newTable(t *testing.T) *Table {
	table := NewTable(quiet())
	t.Cleanup(table.Close)
	return table
}

func shell(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + DefaultPath}}
}

func mustStart(t *testing.T, table *Table, c Command) *Process {
	t.Helper()
	p, err := table.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustWait(t *testing.T, p *Process) Exit {
	t.Helper()
	exit, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func TestProcessTellsHowItEnded(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	table := newTable(t)
	if exit := mustWait(t, mustStart(t, table, shell("exit 0"))); !exit.Success() || exit.String() != "exit status 0" {
		t.Errorf("exit 0: %v", exit)
	}
	if exit := mustWait(t, mustStart(t, table, shell("exit 7"))); exit.Success() || exit.Code() != 7 || exit.Signaled() {
		t.Errorf("exit 7: %v", exit)
	}
	exit := mustWait(t, mustStart(t, table, shell("kill -SEGV $$")))
	if !exit.Signaled() || exit.Signal() != unix.SIGSEGV || exit.String() != "killed by signal 11 (SIGSEGV)" {
		t.Errorf("kill -SEGV: %v", exit)
	}
}

func TestEveryProcessGetsItsOwnExitStatus(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	coretest.Subreaper(t)
	table := newTable(t)
	var starters sync.WaitGroup
	for worker := range 8 {
		starters.Go(func() {
			for i := range 25 {
				want := (worker*25 + i) % 256
				// Each leaves an orphan behind as well.
				p, err := table.Start(shell(fmt.Sprintf("(exit 3) & exit %d", want)))
				if err != nil {
					t.Error(err)
					return
				}
				if exit, err := p.Wait(t.Context()); err != nil || exit.Code() != want {
					t.Errorf("exit status %v (%v), want %d", exit, err, want)
				}
			}
		})
	}
	starters.Wait()
	if err := table.waitChildless(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	coretest.Subreaper(t)
	table := newTable(t)
	// Opening the fifo for writing lets the orphan end.
	fifo := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	mustWait(t, mustStart(t, table, shell("cat "+fifo+" &")))
	expired, cancel := context.WithCancel(t.Context())
	cancel()
	if err := table.waitChildless(expired); !errors.Is(err, context.Canceled) {
		t.Fatalf("while the orphan lives: %v", err)
	}
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := table.waitChildless(t.Context()); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("wait4 says %v, want ECHILD: something was left unreaped", err)
	}
}

func TestStartSaysWhyItCannot(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	table := newTable(t)
	if _, err := table.Start(Command{Path: "/nonexistent"}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a missing program: %v", err)
	}
	if _, err := table.Start(Command{Path: "/etc/passwd"}); !errors.Is(err, unix.EACCES) {
		t.Errorf("a file that is no program: %v", err)
	}
	c := shell("exit 0")
	c.Stdio = "/nonexistent/console"
	if _, err := table.Start(c); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a missing console: %v", err)
	}
	if exit := mustWait(t, mustStart(t, table, shell("exit 4"))); exit.Code() != 4 {
		t.Errorf("afterwards: %v", exit)
	}
	table.refuse()
	if _, err := table.Start(shell("exit 0")); !errors.Is(err, ErrTableClosed) {
		t.Errorf("while going down: %v", err)
	}
}

func TestProcessesLeadTheirOwnSessionAndInheritNothing(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	table := newTable(t)
	t.Setenv("SECRET", "x")
	// What this process itself was given is not the table's doing.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	err := table.Run(t.Context(), "sh", "-c",
		`test "$(cut -d' ' -f6 /proc/$$/stat)" = $$ || { echo no session; exit 1; }
		 test "$(pwd)" = / || { echo cwd; exit 1; }
		 test -z "$SECRET" || { echo env; exit 1; }
		 test "$(readlink /proc/$$/fd/0)" = /dev/null || { echo stdin; exit 1; }`)
	if err != nil {
		t.Error(err)
	}
	// Descriptor 3 is the directory itself.
	err = table.Run(t.Context(), "sh", "-c", "ls /proc/self/fd; exit 1")
	if err == nil || err.Error() != "sh: exit status 1: 0\n1\n2\n3" {
		t.Errorf("descriptors: %v", err)
	}
}

func TestRun(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	table := newTable(t)
	if err := table.Run(t.Context(), "true"); err != nil {
		t.Errorf("true: %v", err)
	}
	err := table.Run(t.Context(), "sh", "-c", "echo first; echo no such disk >&2; exit 3")
	if err == nil || err.Error() != "sh: exit status 3: first\nno such disk" {
		t.Errorf("a failing program: %v", err)
	}
	err = table.Run(t.Context(), "sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' a; echo the end; exit 1")
	if err == nil || len(err.Error()) > outputLimit+100 || !strings.HasSuffix(err.Error(), "aaathe end") {
		t.Errorf("a talkative program: %d bytes, the last are %q", len(err.Error()), err.Error()[len(err.Error())-20:])
	}
	if err := table.Run(t.Context(), "no-such-program"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a missing program: %v", err)
	}
	// It ends although its descendant holds the pipe.
	pidFile := t.TempDir() + "/pid"
	t.Cleanup(func() {
		b, _ := os.ReadFile(pidFile)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
			unix.Kill(pid, unix.SIGKILL)
		}
	})
	if err := table.Run(t.Context(), "sh", "-c", "sleep 1000 & echo $! > "+pidFile+"; exit 0"); err != nil {
		t.Errorf("a program with a daemon: %v", err)
	}
}

func TestRunKillsWhatItsContextLeaves(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	coretest.Subreaper(t)
	table := newTable(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	err := table.Run(ctx, "sh", "-c", "sleep 1000; true")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	// The sleep was of its group.
	if err := table.waitChildless(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLookPath(t *testing.T) {
	if path, err := LookPath("sh"); err != nil || !strings.HasSuffix(path, "/sh") {
		t.Errorf("sh: %q, %v", path, err)
	}
	if path, err := LookPath("/bin/sh"); err != nil || path != "/bin/sh" {
		t.Errorf("/bin/sh: %q, %v", path, err)
	}
	for name, want := range map[string]error{
		"no-such-program": unix.ENOENT,
		"/nonexistent":    unix.ENOENT,
		"/etc/passwd":     os.ErrPermission,
		"/etc":            unix.EISDIR,
		"bin/sh":          unix.EINVAL,
		"":                unix.EINVAL,
	} {
		if _, err := LookPath(name); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
}

func TestEndAll(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	ready := t.TempDir() + "/ready"
	if err := unix.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	obeys := mustStart(t, table, shell("trap 'exit 9' TERM; echo > "+ready+"; while :; do sleep 0.01; done"))
	readLine(t, ready)
	ignores := mustStart(t, table, shell("trap '' TERM; echo > "+ready+"; while :; do sleep 0.01; done"))
	readLine(t, ready)
	mustWait(t, mustStart(t, table, shell("setsid sleep 1000 &")))

	if err := table.EndAll(2 * time.Second); err != nil {
		t.Error(err)
	}
	if exit := mustWait(t, obeys); exit.Code() != 9 {
		t.Errorf("what obeys SIGTERM: %v", exit)
	}
	if exit := mustWait(t, ignores); exit.Signal() != unix.SIGKILL {
		t.Errorf("what ignores SIGTERM: %v", exit)
	}
	if left := userProcesses(); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
	if _, err := table.Start(shell("exit 0")); !errors.Is(err, ErrTableClosed) {
		t.Errorf("a start afterwards: %v", err)
	}
}

func TestEndAllDoesNotWaitWithoutNeed(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	mustStart(t, table, Command{Path: "/bin/sleep", Args: []string{"sleep", "1000"}})
	// Waited for, this grace would outlast the test's own time.
	if err := table.EndAll(24 * time.Hour); err != nil {
		t.Error(err)
	}
}

func TestOnlyInitEndsEverything(t *testing.T) {
	if os.Getpid() == 1 {
		t.Fatal("this is PID 1")
	}
	table := newTable(t)
	if err := table.EndAll(0); !errors.Is(err, errNotInit) {
		t.Fatalf("error %v, want errNotInit", err)
	}
	if err := PowerOff(quiet()); err == nil {
		t.Fatal("PowerOff without being PID 1 did not fail")
	}
}

func readLine(t *testing.T, fifo string) {
	t.Helper()
	if _, err := os.ReadFile(fifo); err != nil {
		t.Fatal(err)
	}
}

// SIGTERM is not for what has a PID 1 of its own, which would take it for
// another order.
func TestEndAllLeavesContainersToTheirInit(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	dir := t.TempDir()
	fifo := dir + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	loop := func(name string) string {
		return "trap 'echo told > " + dir + "/" + name + "' TERM; echo > " + fifo + "; while :; do sleep 0.01; done"
	}
	for _, script := range []string{loop("ours"), `exec unshare --pid --fork sh -c "` + loop("theirs") + `"`} {
		if _, err := table.Start(shell(script)); err != nil {
			t.Fatal(err)
		}
		readLine(t, fifo)
	}
	// LXC's monitor is one of ours, and would send the signal on.
	monitor := Command{Path: "/bin/sh", Args: []string{"[lxc monitor] /mnt/stateful/incus/containers penguin", "-c", loop("monitor")}, Env: []string{"PATH=" + DefaultPath}}
	if _, err := table.Start(monitor); err != nil {
		t.Fatal(err)
	}
	readLine(t, fifo)
	if err := table.EndAll(2 * time.Second); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/monitor"); err == nil {
		t.Error("a container's PID 1 was told to end by way of its monitor")
	}
	if _, err := os.Stat(dir + "/ours"); err != nil {
		t.Errorf("a process of ours was not told to end: %v", err)
	}
	if _, err := os.Stat(dir + "/theirs"); err == nil {
		t.Error("a container's PID 1 was told to end like a process of ours")
	}
}
