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

// logins: alice sits at the machine; bob has a terminal that is not in front.
func logins(t *testing.T, h *host) {
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	h.root().run(t, "systemctl start polkit.service")
	for _, l := range [][2]string{{"alice", "tty1"}, {"bob", "tty2"}} {
		if _, err := h.Login(ctx, l[0], l[1]); err != nil {
			t.Fatal(err)
		}
	}
	activate(t, h.Session("alice-tty1"))
	checkSession(t, h, "alice-tty1", "seat0 yes")
	checkSession(t, h, "bob-tty2", "seat0 no")
}

func checkSession(t *testing.T, h *host, name, want string) {
	t.Helper()
	w := who{h.Host, wire.Exec{Session: name}}
	got := w.run(t, `echo "$(loginctl show-session -P Seat $XDG_SESSION_ID) $(loginctl show-session -P Active $XDG_SESSION_ID)"`)
	if got != want {
		t.Errorf("the session %s has seat and activity %q, want %q", name, got, want)
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

const use = "vmc list"

// polkitDecides has the real polkit and logind say who may use VMs.
func polkitDecides(t *testing.T, h *host) {
	behind := h.Session("bob-tty2")
	atDesk := who{h.Host, wire.Exec{Session: behind.Name}}
	h.alice.run(t, use)
	atDesk.fails(t, denied, use)
	activate(t, behind)
	atDesk.run(t, use)
	h.alice.fails(t, denied, use)
	activate(t, h.Session("alice-tty1"))
	h.alice.run(t, use)
	atDesk.fails(t, denied, use)
}

// membersMay: bob leaves the seat, comes from elsewhere and joins the group.
// polkit takes a user for active who is so in any session, and a session
// without a seat is always active for logind: bob has one at a time.
func membersMay(t *testing.T, h *host) {
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	noSession := who{h.Host, wire.Exec{User: "bob"}}
	if err := h.Session("bob-tty2").Logout(ctx); err != nil {
		t.Fatal(err)
	}
	noSession.fails(t, denied, use)
	elsewhere, err := h.Login(ctx, "bob", "")
	if err != nil {
		t.Fatal(err)
	}
	checkSession(t, h, "bob", "yes")
	h.bob.fails(t, denied, use)

	// As everywhere, the next login has the new groups.
	h.root().run(t, "usermod --append --groups auberge bob")
	if err := elsewhere.Logout(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Login(ctx, "bob", ""); err != nil {
		t.Fatal(err)
	}
	h.bob.run(t, use)
	noSession.run(t, use)
	h.bob.fails(t, denied, "vmc list --owner 1000")
	h.root().run(t, "vmc list --owner 1000")
	if audit := h.root().run(t, "journalctl --quiet -u vm-concierge.service --output=cat | grep 'audit=true' || true"); !strings.Contains(audit, "1000") {
		t.Errorf("the administrator's right was used, and the journal says of it: %q", audit)
	}
}
