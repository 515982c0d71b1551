package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The file of the test's own decides alone; one that cannot be read decides
// nothing.
func TestUserGone(t *testing.T) {
	passwd := filepath.Join(t.TempDir(), "passwd")
	text := "root:x:0:0:root:/root:/bin/sh\n\nbroken\nalice:x:64101:64101::/home/alice:/bin/sh\nbob:x:641:64102:64103:/:/bin/sh\n+::::::\n"
	if err := os.WriteFile(passwd, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h := Host{Passwd: passwd}
	for uid, want := range map[uint32]bool{0: false, 64101: false, 641: false, 64102: true, 64103: true, 6410: true} {
		if got, err := h.UserGone(t.Context(), uid); err != nil || got != want {
			t.Errorf("uid %d is gone: %v, %v", uid, got, err)
		}
	}
	h.Passwd += ".missing"
	if gone, err := h.UserGone(t.Context(), 64101); gone || err == nil {
		t.Errorf("without a file: %v, %v", gone, err)
	}
	if err := os.WriteFile(passwd, []byte(strings.Repeat("x", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Passwd = passwd
	if gone, err := h.UserGone(t.Context(), 64101); gone || err == nil {
		t.Errorf("with a line that has no end: %v, %v", gone, err)
	}
}

// The machine's own name service is asked for what is not in its file.
func TestUserGoneOnThisMachine(t *testing.T) {
	if gone, err := (Host{}).UserGone(t.Context(), 0); gone || err != nil {
		t.Errorf("root is gone: %v, %v", gone, err)
	}
	text, err := os.ReadFile(nsswitch)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	// A uid that systemd and Debian leave alone.
	gone, err := Host{}.UserGone(t.Context(), 0x7ffffffe)
	if remote := remoteSource(string(text)) != ""; gone == remote || (err != nil) != remote {
		t.Errorf("a uid that nobody has: %v, %v", gone, err)
	}
}

func TestRemoteSource(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "",
		"passwd: files systemd\n":  "",
		"passwd:\tfiles sss # x\n": "sss",
		"#passwd: ldap\n":          "",
		"group: ldap\npasswd: files [NOTFOUND=return] ldap": "ldap",
		"passwd: sss files": "sss",
	} {
		if got := remoteSource(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
