package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// What vm_cicerone may take of memory, at its most, whatever guests send.
const ciceroneMiB = 300

// A liar is a VM whose root says to the host what he likes.
type liar struct {
	*client
	vm   string
	root *session
}

// liarProgram builds what makes a liar of a VM.
func liarProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "liar")
	build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", program, "./liar")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// put brings the program into a VM, with more to be done there afterwards.
func (c *client) put(vm, program, then string) {
	c.t.Helper()
	f, err := os.Open(program)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	cmd := c.bed.Command(c.user, "vsh", "--user", "root", vm, "--", "sh", "-ec", "cat > /run/liar.program; chmod 755 /run/liar.program; "+then)
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("put the liar into %s: %v: %s", vm, err, out)
	}
}

const untilReady = "; until test -e /run/liar/ready; do sleep 0.1; done"

// attack runs one of the liar's attacks and returns what it says.
func (l *liar) attack(name string, args ...string) []string {
	l.t.Helper()
	cmd := append([]string{"--user", "root", l.vm, "--", "/run/liar.program", "attack", name}, args...)
	out, errs, err := l.run("vsh", cmd...)
	if err != nil {
		l.t.Fatalf("attack %s: %v: %s%s", name, err, out, errs)
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

// hold begins an attack that goes on until the function it returns is called,
// with what it says first.
func (l *liar) hold(name string, args ...string) (first string, end func()) {
	l.t.Helper()
	cmd := l.bed.Command(l.user, "vsh", append([]string{"--user", "root", l.vm, "--", "/run/liar.program", "attack", name}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { cmd.Process.Kill() })
	first, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		l.t.Fatalf("attack %s: %v", name, err)
	}
	return strings.TrimSpace(first), func() {
		in.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("attack %s: %v", name, err)
		}
	}
}

// lie has the agents say something else from now on.
func (l *liar) lie(what string) { l.root.say("printf %s '" + what + "' > /run/liar/lie") }

// icon asks for the icon of an application in the VM's container.
func (c *client) icon(vm, id string) (*ciceronepb.ContainerAppIconResponse, error) {
	c.t.Helper()
	var resp ciceronepb.ContainerAppIconResponse
	err := c.cicerone("GetContainerAppIcon", &ciceronepb.ContainerAppIconRequest{VmName: vm, DesktopFileIds: []string{id}, Size: 48, Scale: 1}, &resp)
	return &resp, err
}

// containerServed checks that a user's container is, on a connection that the
// user has and on a new one.
func (c *client) containerServed(t *testing.T, vm string) {
	t.Helper()
	for _, c := range []*client{c, c.bed.client(c.user)} {
		if !c.containerRuns(vm) {
			t.Errorf("the container in %s does not run", vm)
		}
		if r, err := c.icon(vm, "editor"); err != nil || len(r.Icons) != 1 || string(r.Icons[0].Icon) != "icon of editor" {
			t.Errorf("the container in %s is not served: %v, %v", vm, r, err)
		}
	}
}

func (c *client) containerRuns(vm string) bool {
	c.t.Helper()
	var resp ciceronepb.IsContainerRunningResponse
	if err := c.cicerone("IsContainerRunning", &ciceronepb.IsContainerRunningRequest{VmName: vm}, &resp); err != nil {
		c.t.Fatal(err)
	}
	return resp.ContainerRunning
}

// peakOf is the most resident memory that a process has had, in MiB.
func peakOf(t *testing.T, pid int) int {
	t.Helper()
	for _, line := range statusLines(t, pid) {
		if line[0] == "VmHWM:" {
			kib, err := strconv.Atoi(line[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// A browser is a desktop that opens what it is told to.
type browser struct{ opened atomic.Int64 }

func (b *browser) OpenUrl(string) *godbus.Error {
	b.opened.Add(1)
	return nil
}

// A guest says on the ports of vm_cicerone what it likes, and answers what it
// likes: it is refused or bounded, another user's VM is served meanwhile, and
// its own is when it has come to its senses.
func TestHostileGuestsOfCicerone(t *testing.T) {
	t.Parallel()
	program := liarProgram(t)
	b := newBed(t)
	pid := b.startCicerone().Cmd.Process.Pid
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "h", DiskSize: 1 << 30}, &disk)
	alice.small("h")
	bob.small("q")
	first := alice.goStart(&pb.StartVmRequest{Name: "h", StartTermina: true, Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}})
	second := bob.goStart(&pb.StartVmRequest{Name: "q", VmType: pb.VmInfo_BRUSCHETTA})
	for _, started := range []<-chan *pb.StartVmResponse{first, second} {
		if r := <-started; !r.Success {
			t.Fatal(r.FailureReason)
		}
	}
	for _, c := range []struct {
		*client
		vm string
	}{{alice, "h"}, {bob, "q"}} {
		b.await("wait until vm_cicerone knows "+c.vm, func() bool { return c.looksAfter(c.vm) })
	}
	desktop := &browser{}
	if err := alice.conn.Export(desktop, dbus.URLHandlerPath, dbus.URLHandlerInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.conn.RequestName(dbus.URLHandlerName, 0); err != nil {
		t.Fatal(err)
	}

	// Bob's VM is its own container, whose agent tells the truth.
	var token string
	var list []map[string]godbus.Variant
	if err := b.client(testbed.Cicerone).own("ListVmEndpoints").Store(&list); err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		if v["name"].Value() == any("q") {
			token = v["token"].Value().(string)
		}
	}
	if token == "" {
		t.Fatalf("bob's VM has no token: %v", list)
	}
	bob.put("q", program, "setsid /run/liar.program agents "+token+" > /dev/kmsg 2>&1 < /dev/null & "+untilReady[2:])
	// Alice has her VM start the liar where its tremplin was.
	alice.put("h", program, "mount --bind /run/liar.program /opt/google/cros-containers/bin/tremplin; pkill -x tremplin"+untilReady)
	h := &liar{client: alice, vm: "h", root: alice.shellBy("vsh", "--user", "root", "h", "--", "sh")}
	// What is begun before vm_cicerone has heard of the liar fails.
	b.await("start the container", func() bool {
		var started ciceronepb.StartLxdContainerResponse
		if err := alice.cicerone("StartLxdContainer", &ciceronepb.StartLxdContainerRequest{VmName: "h"}, &started); err != nil {
			t.Fatal(err)
		}
		if started.Status == ciceronepb.StartLxdContainerResponse_FAILED && !strings.Contains(started.FailureReason, "started anew") {
			t.Fatal(&started)
		}
		return started.Status == ciceronepb.StartLxdContainerResponse_STARTED || started.Status == ciceronepb.StartLxdContainerResponse_RUNNING
	})
	b.await("wait until the container runs", func() bool { return alice.containerRuns("h") })
	alice.containerServed(t, "h")
	bob.containerServed(t, "q")
	files := descriptorsOf(t, pid)
	t.Logf("vm_cicerone takes %d MiB and has %d files open", memoryOf(t, pid), files)
	// As many as that have to succeed, for the attack to be one.
	held := func(least int, name string, args ...string) {
		t.Helper()
		first, end := h.hold(name, args...)
		var taken, refused int
		fmt.Sscan(first, &taken, &refused)
		t.Logf("%s: %d taken, %d refused", name, taken, refused)
		if taken < least {
			t.Errorf("%s: only %d were taken, want %d", name, taken, least)
		}
		bob.containerServed(t, "q")
		if n := descriptorsOf(t, pid); n > files+300 {
			t.Errorf("%s: vm_cicerone has %d files open", name, n)
		}
		end()
	}
	check := func(what string) {
		t.Helper()
		bob.containerServed(t, "q")
		t.Logf("%s: vm_cicerone takes %d MiB, at most %d", what, memoryOf(t, pid), peakOf(t, pid))
		if mib := peakOf(t, pid); mib > ciceroneMiB {
			t.Errorf("%s: vm_cicerone took %d MiB", what, mib)
		}
	}

	t.Run("tokens", func(t *testing.T) {
		for _, line := range h.attack("tokens", token) {
			what, code, _ := strings.Cut(line, ": ")
			want := "FailedPrecondition"
			switch {
			case strings.HasPrefix(what, "none"), strings.HasPrefix(what, "too long"):
				want = "InvalidArgument"
			case strings.HasPrefix(what, "/"), strings.HasPrefix(what, "TremplinReady"):
				want = "Unimplemented"
			}
			if code != want {
				t.Errorf("%s is answered %s, not %s", what, code, want)
			}
		}
		check("tokens")
	})
	t.Run("messages", func(t *testing.T) {
		for _, line := range h.attack("messages") {
			want := ": Internal"
			if strings.HasPrefix(line, "5 MB") {
				want = ": ResourceExhausted"
			}
			if !strings.HasSuffix(line, want) {
				t.Error(line)
			}
		}
		check("messages")
	})
	t.Run("reports", func(t *testing.T) {
		ear := testbed.Listen(b.client(testbed.Alice).conn)
		want := []string{"many reports are refused: true", "crashes that are heard: 20"}
		if got := h.attack("reports"); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		// What nobody has asked for has no end.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := testbed.Await[*ciceronepb.StartLxdProgressSignal](ctx, ear, nil); err != nil {
			t.Fatal(err)
		}
		none[*ciceronepb.LxdContainerCreatedSignal](t, ear)
		none[*ciceronepb.LxdContainerStartingSignal](t, ear)
		none[*ciceronepb.LxdContainerDeletedSignal](t, ear)
		none[*ciceronepb.ExportLxdContainerProgressSignal](t, ear)
		none[*ciceronepb.ContainerShutdownSignal](t, ear)
		check("reports")
	})
	t.Run("URLs", func(t *testing.T) {
		const urls = 10000
		var opened, refused, other int
		fmt.Sscan(h.attack("urls", itoa(urls))[0], &opened, &refused, &other)
		t.Logf("%d of %d URLs were opened, %d refused", opened, urls, refused)
		// Ten in 15 seconds, however long this took.
		if opened == 0 || opened > urls/20 || opened+refused != urls || int(desktop.opened.Load()) != opened {
			t.Errorf("%d opened, %d refused, %d otherwise, and the desktop has heard of %d", opened, refused, other, desktop.opened.Load())
		}
		check("URLs")
	})
	t.Run("lists", func(t *testing.T) {
		// Larger than one may be, and not.
		for _, n := range []int{250000, 100000} {
			t.Log(h.attack("lists", itoa(n)))
			check(fmt.Sprintf("lists of %d names", n))
		}
	})
	t.Run("connections", func(t *testing.T) {
		held(1000, "connections", "3000")
		check("connections")
	})
	t.Run("halves", func(t *testing.T) {
		held(32, "halves")
		check("halves")
	})
	t.Run("resets", func(t *testing.T) {
		for _, line := range h.attack("resets", "1000") {
			if !strings.HasSuffix(line, ": true") {
				t.Errorf("nothing was reset: %s", line)
			}
		}
		check("resets")
	})
	t.Run("answers", func(t *testing.T) {
		h.answers(t)
		check("answers")
	})

	h.lie("the truth")
	alice.containerServed(t, "h")
	bob.containerServed(t, "q")
	b.await("vm_cicerone to close what came with the attacks", func() bool { return descriptorsOf(t, pid) <= files+4 })
	if err := alice.cicerone("IsContainerRunning", &ciceronepb.IsContainerRunningRequest{VmName: "q", OwnerId: itoa(int(testbed.Bob.UID))}, &ciceronepb.IsContainerRunningResponse{}); errorName(err) != accessDenied {
		t.Errorf("alice asks for bob's container: %v", err)
	}
	alice.stop("h")
	bob.stop("q")
	b.gone()
}

func none[M proto.Message](t *testing.T, e *testbed.Ear) {
	t.Helper()
	if got := testbed.All[M](e); len(got) > 0 {
		t.Errorf("%T: %v", got[0], got)
	}
}

// answers has the agents of the VM answer what they should not.
func (h *liar) answers(t *testing.T) {
	names := func() []string {
		t.Helper()
		var list []map[string]godbus.Variant
		if err := h.cicerone1(dbus.Cicerone1Name+".ListContainers", "h", "").Store(&list); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range list {
			names = append(names, c["name"].Value().(string))
		}
		return names
	}
	h.lie("lists")
	if n := len(names()); n < 2 || n > 65 {
		t.Errorf("of 15,000 containers %d are listed", n)
	}
	h.lie("names")
	if got := names(); !slices.Equal(got, []string{"good", "penguin"}) {
		t.Errorf("containers of names that cannot be: %q", got)
	}
	for lie, want := range map[string]string{"large icons": "the guest says", "many icons": "too many fields"} {
		h.lie(lie)
		if r, err := h.icon("h", "editor"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d icons, %v", lie, len(r.Icons), err)
		}
	}
	h.lie("other icons")
	if r, err := h.icon("h", "editor"); err != nil || len(r.Icons) != 1 || r.Icons[0].DesktopFileId != "editor" {
		t.Errorf("icons that nobody asked for: %d, %v", len(r.GetIcons()), err)
	}
	h.lie("states")
	reason := func(what, text string) {
		t.Helper()
		if text == "" || len(text) > 3000 || strings.ContainsAny(text, "\x1b\x07\r\n") {
			t.Errorf("%s: a reason of %d bytes: %.40q", what, len(text), text)
		}
	}
	var create ciceronepb.CreateLxdContainerResponse
	if err := h.cicerone("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: "h", ContainerName: "other"}, &create); err != nil || create.Status != ciceronepb.CreateLxdContainerResponse_FAILED {
		t.Errorf("%v, %v", create.Status, err)
	}
	reason("create", create.FailureReason)
	var start ciceronepb.StartLxdContainerResponse
	if err := h.cicerone("StartLxdContainer", &ciceronepb.StartLxdContainerRequest{VmName: "h", ContainerName: "other"}, &start); err != nil || start.Status != ciceronepb.StartLxdContainerResponse_FAILED || len(start.OsRelease.GetPrettyName()) > 200 {
		t.Errorf("%v, %v", start.Status, err)
	}
	reason("start", start.FailureReason)
	var stop ciceronepb.StopLxdContainerResponse
	if err := h.cicerone("StopLxdContainer", &ciceronepb.StopLxdContainerRequest{VmName: "h", ContainerName: "other"}, &stop); err != nil || stop.Status != ciceronepb.StopLxdContainerResponse_FAILED {
		t.Errorf("%v, %v", stop.Status, err)
	}
	reason("stop", stop.FailureReason)
	var user ciceronepb.GetLxdContainerUsernameResponse
	if err := h.cicerone("GetLxdContainerUsername", &ciceronepb.GetLxdContainerUsernameRequest{VmName: "h"}, &user); err != nil || user.Status != ciceronepb.GetLxdContainerUsernameResponse_FAILED || len(user.Username) > 100 || strings.ContainsAny(user.Homedir, "\x1b\n") {
		t.Errorf("%v, %d, %v", user.Status, len(user.Username), err)
	}
	var zone ciceronepb.SetTimezoneResponse
	if err := h.cicerone("SetTimezone", &ciceronepb.SetTimezoneRequest{TimezoneName: "UTC"}, &zone); err != nil || zone.Successes > 1000 || len(zone.FailureReasons) != 1 {
		t.Errorf("%d zones set, %v", zone.Successes, err)
	} else {
		reason("time zone", zone.FailureReasons[0])
	}
	h.debug()
}
