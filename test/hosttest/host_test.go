package hosttest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/test/testhost"
	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// stepTime bounds one step. Everything in the machine is emulated, and its VMs
// twice.
const stepTime = 6 * time.Minute

// packagesAt is where the machine has the packages under test.
const packagesAt = "/mnt/packages"

// AUBERGE_TESTHOST may name the socket of a test host that somebody keeps
// running, with the packages at packagesAt, to work on one step.
const attachEnv = "AUBERGE_TESTHOST"

func TestHost(t *testing.T) {
	h := start(t)
	for _, step := range []struct {
		name string
		do   func(*testing.T, *host)
		base bool // the others need it
	}{
		{"the packages install without a network", install, true},
		{"the units are confined", confined, false},
		{"users log in", logins, true},
		{"vm_cicerone runs, and is started by a call", ciceroneRuns, false},
		{"polkit decides who may have VMs", polkitDecides, false},
		{"members of the group may have VMs, and only their own", membersMay, true},
		{"a VM runs on KVM with user vsock", userVsock, true},
		{"a VM runs on KVM with kernel vsock", kernelVsock, true},
		{"vm_cicerone knows the VMs, and is called by those with containers", ciceroneKnows, false},
		{"each VM has a user, limits and a journal of its own", oneOfItsOwn, false},
		{"another user learns and reaches nothing", isolated, false},
		{"nobody but the service reaches a guest's ports", portsRefuse, false},
		{"VMs survive a restart of the services", survivesRestart, false},
		{"VMs survive that the services are killed", survivesKill, false},
		{"VMs survive an upgrade", survivesUpgrade, false},
		{"the service's user manages VMs' units and no others", unitsOnly, false},
		{"VMs are suspended while the machine sleeps", hostSleeps, false},
		{"the machine waits for its VMs before it sleeps or shuts down", hostWaits, false},
		{"power off stops VMs in order and leaves a clean disk", powerOff, false},
		{"purge leaves what it says", purge, false},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) && step.base {
			t.Fatal("the rest depends on this")
		}
	}
}

// host is the machine, and what the steps know of it.
type host struct {
	*testhost.Host
	owned      bool
	alice, bob who
	first      vm     // of alice, with user vsock
	second     vm     // of bob, with kernel vsock
	before     string // the files on the disk before anything was installed
}

// vm is a VM under test.
type vm struct {
	name, id string
	owner    *who
	boot     string // its boot ID
	main     string // process number of its supervisor
}

// who runs commands: in a session, or as a user without one.
type who struct {
	host *testhost.Host
	wire.Exec
}

func (h *host) root() who { return who{host: h.Host} }

func start(t *testing.T) *host {
	t.Helper()
	if socket := os.Getenv(attachEnv); socket != "" {
		return attached(&host{Host: testhost.Attach(socket)})
	}
	packages := os.Getenv("AUBERGE_PACKAGES")
	if packages == "" {
		packages = "../../bin/packages"
	}
	packages, err := filepath.Abs(packages)
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(filepath.Join(packages, "*.deb")); len(found) != 3 {
		t.Fatalf("in %s are not the three packages: make packages makes them (or set AUBERGE_PACKAGES)", packages)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	h, err := testhost.Boot(ctx, testhost.Options{
		Shares: []testhost.Share{{Dir: packages, Target: packagesAt}}, Log: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			lastWords(t, h)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return attached(&host{Host: h, owned: true})
}

// lastWords logs what the machine has to say about a failure.
func lastWords(t *testing.T, h *testhost.Host) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := h.Output(ctx, "sh", "-c", "uptime; journalctl --no-pager --boot --lines=60")
	t.Logf("the end of the machine's journal: %v\n%s", err, out)
}

// attached fills in what does not depend on any step.
func attached(h *host) *host {
	h.alice = who{h.Host, wire.Exec{Session: "alice-tty1"}}
	h.bob = who{h.Host, wire.Exec{Session: "bob"}}
	h.first = vm{name: "kestrel-box", owner: &h.alice}
	h.second = vm{name: "osprey-box", owner: &h.bob}
	return h
}

// try runs a script and returns what it wrote, with its exit code.
func (w who) try(t *testing.T, script string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	var out, said bytes.Buffer
	c := testhost.Cmd{Exec: w.Exec, Stdout: &out, Stderr: &said}
	c.Args = []string{"bash", "-c", script}
	err := w.host.Do(ctx, c)
	var failed *testhost.ExitError
	switch {
	case errors.As(err, &failed):
		code = failed.Exit.Code
	case err != nil:
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String()), strings.TrimSpace(said.String()), code
}

// run runs a script that has to succeed.
func (w who) run(t *testing.T, script string) string {
	t.Helper()
	out, said, code := w.try(t, script)
	if code != 0 {
		t.Fatalf("%s: code %d\n%s\n%s", script, code, out, said)
	}
	return out
}

// fails runs a script that has to end with a code, and returns its complaint.
func (w who) fails(t *testing.T, want int, script string) string {
	t.Helper()
	out, said, code := w.try(t, script)
	if code != want {
		t.Errorf("%s: code %d, want %d\n%s\n%s", script, code, want, out, said)
	}
	return said
}
