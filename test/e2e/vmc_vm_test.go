package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/test/testbed"
)

// A program is one of ours that runs beside the test.
type program struct {
	t         *testing.T
	cmd       *exec.Cmd
	out, errs chan string // lines; closed at the end
}

// begin starts a program as a user; what is left of it ends with the test.
func (b *bed) begin(u testbed.User, name string, args ...string) *program {
	b.t.Helper()
	p := &program{t: b.t, cmd: b.Command(u, name, args...)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	errs, err := p.cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	p.out, p.errs = linesOf(out), linesOf(errs)
	b.t.Cleanup(func() {
		p.cmd.Process.Kill() // no more than an error when it has ended
		for range p.out {
		}
		for range p.errs {
		}
		p.cmd.Wait()
	})
	return p
}

func linesOf(r io.Reader) chan string {
	ch := make(chan string, 10000)
	go func() {
		defer close(ch)
		for s := bufio.NewScanner(r); s.Scan(); {
			ch <- s.Text()
		}
	}()
	return ch
}

// until waits for a line that says something, and returns it with those
// before it.
func (p *program) until(ch chan string, says string) []string {
	p.t.Helper()
	var lines []string
	timeout := time.After(patience)
	for {
		select {
		case l, ok := <-ch:
			if !ok {
				p.t.Fatalf("%v ended without a line with %q; it said %q", p.cmd.Args, says, lines)
			}
			if lines = append(lines, l); strings.Contains(l, says) {
				return lines
			}
		case <-timeout:
			p.t.Fatalf("%v has no line with %q; it said %q", p.cmd.Args, says, lines)
		}
	}
}

// ends waits for the end of a program and returns its last lines.
func (p *program) ends(want int) []string {
	p.t.Helper()
	var rest []string
	for l := range p.out {
		rest = append(rest, l)
	}
	for range p.errs {
	}
	if got := exitCode(p.cmd.Wait()); got != want {
		p.t.Fatalf("%v: exit code %d, want %d", p.cmd.Args, got, want)
	}
	return rest
}

// signals reads what vmc monitor printed: the names, with the status of the VM
// where it is one of ours.
func signals(t *testing.T, lines []string) []string {
	t.Helper()
	var names []string
	for _, text := range lines {
		var l struct {
			Signal  string
			Payload struct {
				Vm struct{ Status string }
			}
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		names = append(names, strings.TrimSuffix(l.Signal, "Signal")+strings.TrimSuffix(":"+l.Payload.Vm.Status, ":"))
	}
	return names
}

// A VM from its start to its end with vmc alone, as a monitor sees it, which
// outlives the service. What it boots are descriptors.
func TestVmcLife(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	vmc := func(args ...string) string {
		t.Helper()
		out, errs, err := alice.run("vmc", args...)
		if err != nil {
			t.Fatalf("vmc %s: %v: %s%s", strings.Join(args, " "), err, out, errs)
		}
		return out
	}
	monitor := b.begin(testbed.Alice, "vmc", "monitor", "--vm", "x", "--until", "VmStopped")
	monitor.until(monitor.errs, "listening")
	bobs := b.begin(testbed.Bob, "vmc", "monitor")
	bobs.until(bobs.errs, "listening")

	vmc("config", "x", "--memory", "512M", "--cpus", "1", "--network", "restricted")
	disk := filepath.Join(b.Home(testbed.Alice), "disk,1.img")
	alice.image(disk, "ext4")
	vmc("start", "x", "--kernel", filepath.Join(b.Image, "vmlinux"), "--rootfs", filepath.Join(b.Image, "rootfs.squashfs"),
		"--kernel-param", "word=of-alice", "--oem-string", "from=vmc",
		"--disk", strings.ReplaceAll(disk, ",", ",,")+",writable,mount=/mnt/d,fstype=ext4")
	if got := alice.vsh("x", "sh", "-c", "tr ' ' '\\n' </proc/cmdline | grep word; findmnt -no FSTYPE /mnt/d || grep -o '/mnt/d ext4' /proc/mounts"); !strings.Contains(got, "word=of-alice") || !strings.Contains(got, "ext4") {
		t.Errorf("in the guest: %q", got)
	}
	if got := vmc("config", "x"); !strings.Contains(got, "512 MiB") {
		t.Errorf("config: %s", got)
	}

	if _, err := b.collector().CollectUserLogs(t.Context(), record("said-to-the-log")); err != nil {
		t.Fatal(err)
	}
	follow := b.begin(testbed.Alice, "vmc", "logs", "x", "-f")
	before := follow.until(follow.out, "said-to-the-log")
	if got := vmc("logs", "x"); !strings.HasPrefix(got, strings.Join(before, "\n")+"\n") {
		t.Errorf("logs and logs -f do not say the same: %q and %q", got, before)
	}
	if got := vmc("logs", "x", "-n", "1"); strings.Count(got, "\n") != 1 {
		t.Errorf("the last line: %q", got)
	}

	vmc("suspend", "x")
	for _, args := range [][]string{{"list"}, {"list", "--all"}, {"info", "x"}, {"state"}} {
		if got := vmc(args...); !strings.Contains(got, "suspended") {
			t.Errorf("%v of a suspended VM: %s", args, got)
		}
	}
	if got := vmc("time-sync"); got != "0 asked, 0 failed\n" {
		t.Errorf("time-sync of a suspended VM: %q", got)
	}
	vmc("resume", "x")
	if got := vmc("time-sync"); got != "1 asked, 0 failed\n" {
		t.Errorf("time-sync: %q", got)
	}
	if got := vmc("operations"); !strings.Contains(got, "suspend-vm") || !strings.Contains(got, "done") {
		t.Errorf("operations: %s", got)
	}
	if got := vmc("__complete", "stop", ""); !strings.HasPrefix(got, "x\n") {
		t.Errorf("completion of stop: %q", got)
	}

	b.concierge.Stop(syscall.SIGKILL)
	monitor.until(monitor.errs, "has left the bus")
	follow.until(follow.errs, "has left the bus")
	b.startConcierge()
	monitor.until(monitor.errs, "is on the bus")
	// The log goes on, without what was printed before.
	follow.until(follow.errs, "is back")
	vmc("stop", "--all")
	all := strings.Split(strings.TrimSpace(vmc("logs", "x")), "\n")
	after := follow.until(follow.out, all[len(all)-1])
	if got := append(before, after...); !slices.Equal(got, all) {
		t.Errorf("followed over the restart:\n%s\n--- and all there is:\n%s", strings.Join(got, "\n"), strings.Join(all, "\n"))
	}
	follow.cmd.Process.Signal(os.Interrupt)
	follow.ends(0)
	got := signals(t, monitor.ends(0))
	at := 0
	for _, want := range []string{"VmStartingUp", "VmStarted", "VmChanged:suspended", "VmChanged:running", "VmStopping", "VmStopped"} {
		next := slices.Index(got[at:], want)
		if next < 0 {
			t.Fatalf("no %s at its place among the signals %v", want, got)
		}
		at += next + 1
	}
	if at != len(got) {
		t.Errorf("signals after the one to end with: %v", got[at:])
	}

	bobs.cmd.Process.Signal(os.Interrupt)
	if heard := bobs.ends(0); len(heard) > 0 {
		t.Errorf("bob heard of alice's VM: %q", heard)
	}
	b.gone()
}
