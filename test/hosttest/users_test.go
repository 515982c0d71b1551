package hosttest

import (
	"context"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/test/testhost"
	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// Exit codes of vmc.
const (
	notFound = 3
	denied   = 4
)

// logins: alice sits at the machine; bob is there from elsewhere, and at a
// second terminal that is not in front.
func logins(t *testing.T, h *host) {
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	h.root().run(t, "systemctl start polkit.service")
	for _, l := range [][2]string{{"alice", "tty1"}, {"bob", "tty2"}, {"bob", ""}} {
		if _, err := h.Login(ctx, l[0], l[1]); err != nil {
			t.Fatal(err)
		}
	}
	activate(t, h.Session("alice-tty1"))
	for name, want := range map[string]string{"alice-tty1": "seat0 yes", "bob-tty2": "seat0 no", "bob": " yes"} {
		w := who{h.Host, wire.Exec{Session: name}}
		got := w.run(t, `echo "$(loginctl show-session -P Seat $XDG_SESSION_ID) $(loginctl show-session -P Active $XDG_SESSION_ID)"`)
		if got != strings.TrimSpace(want) {
			t.Errorf("the session %s has seat and activity %q, want %q", name, got, want)
		}
	}
}

func activate(t *testing.T, s *testhost.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	if err := s.Activate(ctx); err != nil {
		t.Fatal(err)
	}
}

// polkitDecides has the real polkit and logind say who may use VMs.
func polkitDecides(t *testing.T, h *host) {
	atDesk := who{h.Host, wire.Exec{Session: "bob-tty2"}}
	noSession := who{h.Host, wire.Exec{User: "bob"}}
	const use = "vmc list"
	h.alice.run(t, use)
	for name, w := range map[string]who{"from elsewhere": h.bob, "at a terminal behind": atDesk, "without a session": noSession} {
		t.Run(name, func(t *testing.T) { w.fails(t, denied, use) })
	}
	activate(t, h.Session("bob-tty2"))
	atDesk.run(t, use)
	h.alice.fails(t, denied, use)
	activate(t, h.Session("alice-tty1"))
	h.alice.run(t, use)
	atDesk.fails(t, denied, use)

	h.root().run(t, "usermod --append --groups auberge bob")
	h.bob.run(t, use)
	noSession.run(t, use)
	h.bob.fails(t, denied, "vmc list --owner 1000")
	h.root().run(t, "vmc list --owner 1000")
	if audit := h.root().run(t, "journalctl --quiet -u vm-concierge.service --output=cat | grep 'audit=true' || true"); !strings.Contains(audit, "1000") {
		t.Errorf("the administrator's right was used, and the journal says of it: %q", audit)
	}
}
