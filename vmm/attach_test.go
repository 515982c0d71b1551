package vmm_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
)

// Daemons that come and go leave nothing in the supervisor, which outlives
// them.
func TestAttachAgainAndAgain(t *testing.T) {
	m := launch(t, "")
	defer end(t, m)
	open := func() int {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.SupervisorPID()))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := open() + 3 // the supervisor may have been busy with its VM
	for range 40 {
		again, err := vmm.Attach(t.Context(), m.Dir)
		if err != nil {
			t.Fatal(err)
		}
		// Its answer has come: somebody watches.
		if _, err := again.Console(t.Context()); err != nil {
			t.Fatal(err)
		}
		again.Release()
	}
	deadline := time.Now().Add(patience)
	for tick := time.Tick(5 * time.Millisecond); open() > before; <-tick {
		if time.Now().After(deadline) {
			t.Fatalf("the supervisor may have %d descriptors and has %d", before, open())
		}
	}
}

func rightsOf(f *os.File, n int) []byte {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	return unix.UnixRights(fds...)
}

// A VM outlives its client; the next one has all of it.
func TestAttach(t *testing.T) {
	first := launch(t, "print:hello")
	pid, supervisor := first.PID(), first.SupervisorPID()
	awaitConsole(t, first, "hello\n")
	// What the guest sends while nobody is there waits.
	before := descriptors(t)
	m, err := vmm.Attach(t.Context(), first.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.PID() != pid || m.SupervisorPID() != supervisor {
		t.Errorf("found %d under %d, want %d under %d", m.PID(), m.SupervisorPID(), pid, supervisor)
	}
	want, _ := json.Marshal(first.Spec)
	if got, _ := json.Marshal(m.Spec); string(got) != string(want) {
		t.Errorf("the spec is %s, want %s", got, want)
	}
	m.Release()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if m, err = vmm.Attach(t.Context(), first.Dir); err != nil {
		t.Fatal(err)
	}
	awaitConsole(t, m, "hello\n")
	for _, port := range []uint32{7777, 7778} { // the first client's would take them too
		first.Listener(port).Close()
	}
	checkEndpoints(t, m)
	if err := m.Stop(t.Context(), "the second client's wish"); err != nil {
		t.Fatal(err)
	}
	if e := await(t, first); e.Message != "the second client's wish" || m.Exit().Message != e.Message {
		t.Errorf("the first client learns %q, the second %q", e.Message, m.Exit().Message)
	}
	if _, err := vmm.Attach(t.Context(), first.Dir); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("attach after the end: %v", err)
	}
}

// Killing the launcher leaves the VM running.
func TestLauncherKilled(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "launcher", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "running\n" {
		t.Fatalf("the launcher said %q", line)
	}
	cmd.Process.Kill()
	cmd.Wait()
	m, err := vmm.Attach(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, m)
	if !alive(m.PID()) {
		t.Error("the hypervisor has gone with the launcher")
	}
	if err := m.Stop(t.Context(), "done"); err != nil {
		t.Error(err)
	}
}

// Where there is no supervisor, a VM has ended; where there is one that does
// not answer, nobody knows.
func TestAttachToNobody(t *testing.T) {
	dir := t.TempDir()
	if _, err := vmm.Attach(t.Context(), dir); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("without a socket: %v", err)
	}
	if _, err := vmm.Attach(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("without a directory: %v", err)
	}
	for name, test := range map[string]struct {
		serve func(c *net.UnixConn)
		gone  bool
	}{
		"closes":                {func(c *net.UnixConn) { vmm.ReceivePacket(c, &vmm.Request{}) }, true},
		"closes without a look": {func(*net.UnixConn) {}, true},
		"says nothing of use":   {func(c *net.UnixConn) { vmm.ReceivePacket(c, &vmm.Request{}); send(t, c, "{}", nil) }, false},
	} {
		dir, stop := fakeSupervisor(t, test.serve)
		if _, err := vmm.Attach(t.Context(), dir); err == nil || errors.Is(err, vmm.ErrGone) != test.gone {
			t.Errorf("a supervisor that %s: %v", name, err)
		}
		stop()
		if _, err := vmm.Attach(t.Context(), dir); !errors.Is(err, vmm.ErrGone) {
			t.Errorf("a dead socket: %v", err)
		}
	}
	held := make(chan struct{})
	dir, stop := fakeSupervisor(t, func(*net.UnixConn) { <-held })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := vmm.Attach(ctx, dir); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, vmm.ErrGone) {
		t.Errorf("one that does not answer: %v", err)
	}
	close(held)
	stop()
}

// fakeSupervisor listens where a supervisor would, and serves each connection
// with a function.
func fakeSupervisor(t *testing.T, serve func(c *net.UnixConn)) (dir string, stop func()) {
	t.Helper()
	dir = t.TempDir()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, vmm.ControlSocket), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	return dir, func() {
		l.Close()
		<-done
	}
}

// A supervisor without a VM is of no use, and must not be given one later by
// a request that nobody waits for.
func TestAttachToSupervisorWithoutVM(t *testing.T) {
	dir := t.TempDir()
	s, err := newLauncher(t).StartSupervisor(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vmm.Attach(t.Context(), dir); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("attach: %v", err)
	}
	if err := s.Await(); err != nil {
		t.Error(err)
	}
}

// Whoever has the VMs' user can take the place of a supervisor. It must not
// make a daemon, which has more rights, kill what it names.
func TestImpostor(t *testing.T) {
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		victim.Process.Kill()
		victim.Wait()
	}()
	start := func(t *testing.T, env ...string) (dir string, impostor *exec.Cmd) {
		t.Helper()
		dir = t.TempDir()
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, vmm.ControlSocket), Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		defer l.Close()
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		impostor = exec.Command(self, "impostor")
		impostor.Env = append(os.Environ(), env...)
		impostor.ExtraFiles = []*os.File{f}
		impostor.Stderr = os.Stderr
		if err := impostor.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			impostor.Process.Kill()
			impostor.Wait()
		})
		return dir, impostor
	}
	text, _ := json.Marshal(vmSpec(""))
	status := fmt.Sprintf(`REPLY_status={"status":{"pid":%d,"supervisor":%d,"spec":%s}}`, victim.Process.Pid, victim.Process.Pid, text)

	t.Run("names another process", func(t *testing.T) {
		dir, impostor := start(t, status, `REPLY_endpoints={}`, "FILES_endpoints=0", `REPLY_watch={}`)
		m, err := vmm.Attach(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if m.SupervisorPID() != impostor.Process.Pid {
			t.Errorf("the supervisor is %d, want the impostor, %d", m.SupervisorPID(), impostor.Process.Pid)
		}
		m.Kill()
		await(t, m)
		if !alive(victim.Process.Pid) {
			t.Error("it has made us kill its victim")
		}
	})
	for name, env := range map[string][]string{
		"no status":              {`REPLY_status={}`},
		"nonsense":               {`REPLY_status=nonsense`},
		"more files than ports":  {status, `REPLY_endpoints={"ports":[1]}`, "FILES_endpoints=5"},
		"more ports than files":  {status, `REPLY_endpoints={"ports":[1,2,3]}`, "FILES_endpoints=1"},
		"files that do not fit":  {status, `REPLY_endpoints={"ports":[1]}`, "FILES_endpoints=1"},
		"a port twice":           {status, "SOCKETS=1", `REPLY_endpoints={"ports":[1,1]}`, "FILES_endpoints=2"},
		"descriptors everywhere": {`REPLY_status={"error":"no"}`, "FILES_status=64"},
		"too many descriptors":   {`REPLY_status={}`, "FILES_status=200"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := start(t, env...)
			before := descriptors(t)
			m, err := vmm.Attach(t.Context(), dir)
			if err == nil {
				m.Release()
				t.Fatal("it was believed")
			}
			if after := descriptors(t); after > before+1 {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// Only the user that launched a VM may control it.
func TestOtherUsersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("acts as several users and needs root for that")
	}
	m := launch(t, "")
	socket := filepath.Join(m.Dir, vmm.ControlSocket)
	for d := m.Dir; strings.Count(d, "/") > 1; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		t.Fatal(err)
	}
	askAs := func(uid uint32) string {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", "ask", socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := askAs(65534); !strings.Contains(got, "uid 65534 may not control this VM") {
		t.Errorf("nobody was told %q", got)
	}
	if got := askAs(0); got != "<nil>" {
		t.Errorf("root was told %q", got)
	}
	if err := m.Stop(t.Context(), ""); err != nil {
		t.Error(err)
	}
}
