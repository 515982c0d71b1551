package e2e

import (
	"strconv"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// What the guest's kernel and its programs log reaches the owner's log: from
// the boot's beginning to the last words, errors at once.
func TestGuestLogs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	sc := alice.openLogs("x", map[string]godbus.Variant{"follow": godbus.MakeVariant(true)})
	scanTo(t, sc, "maitred: running from the root disk ")
	g := &liveGuest{client: alice, vm: "x"}
	g.sh(t, "echo '<3>written to kmsg' > /dev/kmsg")
	scanTo(t, sc, "kernel error: written to kmsg")
	alice.vsh("x", "logger", "-p", "user.err", "-t", "mine", "an error of a program")
	scanTo(t, sc, "user error: mine: an error of a program")
	// Without a priority that hurries, it comes as well.
	g.sh(t, "logger -p daemon.info -t 'mine[7]' 'two\nlines'; printf 'in no form' | logger --rfc5424=notime,nohost -t other -p user.warning")
	scanTo(t, sc, "user warning: other: in no form")
	g.sh(t, "logger -p user.info -t mine last words")
	alice.stop("x")

	log := alice.logs("x")
	for _, want := range []string{
		" kernel notice: Linux version 6.", // the very first line
		" user info: mine[7]: two\n", " user info: lines\n",
		" user info: mine: last words\n",
		" kernel info: maitred: shutting down why=\"the host asked\"\n",
	} {
		if strings.Count(log, want) != 1 {
			t.Errorf("there is not one %q in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, "were lost") {
		t.Errorf("something was lost:\n%s", log)
	}
	b.gone()
}

// A program that floods its log takes nothing of its VM: others are heard,
// and the agent stays small.
func TestGuestLogFlood(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	g := &liveGuest{client: alice, vm: "x"}
	const memory = "sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' /proc/1/smaps_rollup"
	before := g.sh(t, memory)
	g.sh(t, "yes 'a line of the flood, which is longer than most lines are, so that a buffer is full sooner' | head -n 40000 | logger -t flood -p user.info")
	sc := alice.openLogs("x", map[string]godbus.Variant{"follow": godbus.MakeVariant(true), "lines": godbus.MakeVariant(uint32(1))})
	alice.vsh("x", "logger", "-p", "user.err", "-t", "mine", "after the flood")
	scanTo(t, sc, "user error: mine: after the flood")
	pss := g.sh(t, memory)
	t.Logf("the agent's PSS was %s KiB and is %s", before, pss)
	if kib, err := strconv.Atoi(pss); err != nil || kib > 16<<10 {
		t.Errorf("the agent's PSS is %s KiB, %v; want 16 MiB at most", pss, err)
	}
	alice.stop("x")
	b.gone()
}
