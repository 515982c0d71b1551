package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// What a guest logs while the service is away, or is killed in the middle of a
// call, is in its log when the service is back: the kernel's lines and the
// programs', each in order and without a gap.
func TestGuestLogsOverRestarts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	const lines = 200
	// In a session of its own: the service that the shell came through ends.
	// The shell ends when it has one, before which its end would take it along.
	alice.rootShell("x", fmt.Sprintf(`setsid sh -c 'touch /run/begun; for i in $(seq %d); do
		echo "<3>kernel line $i" > /dev/kmsg; echo "line $i"; sleep 0.02; done | logger -p user.err -t mine' >/dev/null 2>&1 </dev/null &
		until [ -e /run/begun ]; do sleep 0.05; done`, lines))
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		sc := alice.openLogs("x", map[string]godbus.Variant{"follow": godbus.MakeVariant(true)})
		scanTo(t, sc, fmt.Sprintf(" mine: line %d", 20*(i+1)))
		b.concierge.Stop(sig)
		for sc.Scan() { // its pipe ends with the service
		}
		b.startConcierge()
	}
	sc := alice.openLogs("x", map[string]godbus.Variant{"follow": godbus.MakeVariant(true)})
	seen := map[string]int{}
	for seen["kernel"] < lines || seen["mine"] < lines {
		if !sc.Scan() {
			t.Fatalf("the log ended after %v: %v", seen, sc.Err())
		}
		for _, which := range []string{"kernel", "mine"} {
			_, text, ok := strings.Cut(sc.Text(), map[string]string{"kernel": " kernel error: kernel line ", "mine": " user error: mine: line "}[which])
			var n int
			if !ok {
				continue
			}
			if _, err := fmt.Sscan(text, &n); err != nil {
				t.Fatal(sc.Text())
			}
			// A call whose answer the service's death has cut off comes again.
			if n > seen[which]+1 {
				t.Fatalf("%s: line %d comes after %d", which, n, seen[which])
			}
			seen[which] = max(seen[which], n)
		}
	}

	// What is no text reaches the owner as text.
	alice.vsh("x", "sh", "-c", `printf 'a\377\033[31mb' | logger -p user.err -t mine`)
	sc = alice.openLogs("x", map[string]godbus.Variant{"follow": godbus.MakeVariant(true), "lines": godbus.MakeVariant(uint32(10))})
	for sc.Scan() && !strings.Contains(sc.Text(), "[31mb") {
	}
	if got := sc.Text(); !utf8.ValidString(got) || strings.ContainsRune(got, 0x1b) || !strings.Contains(got, " user error: mine: a") {
		t.Errorf("it came as %q", got)
	}
	alice.stop("x")
	b.gone()
}
