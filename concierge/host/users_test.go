package host

import (
	"bufio"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// Root is everywhere; a number that systemd and Debian leave alone is not,
// unless this machine has accounts that only a directory knows.
func TestUserGoneOnThisMachine(t *testing.T) {
	if gone, err := (Host{}).UserGone(t.Context(), 0); gone || err != nil {
		t.Errorf("root is gone: %v, %v", gone, err)
	}
	if gone, err := (Host{}).UserGone(t.Context(), 0x7ffffffe); gone == (err != nil) {
		t.Errorf("a uid that nobody has: %v, %v", gone, err)
	}
}

func TestOtherSource(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "",
		"passwd: files systemd\n":  "",
		"passwd:\tfiles sss # x\n": "sss",
		"#passwd: ldap\n":          "",
		"group: ldap\npasswd: files [NOTFOUND=return] ldap": "ldap",
		"passwd: sss files": "sss",
	} {
		if got := otherSource(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// answerer is a fake of a service of systemd's that knows accounts: which of
// them run here is the machine's business.
func answerer(t *testing.T, dir, name, answer string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			text, err := bufio.NewReader(c).ReadString(0)
			want := `{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"service":"` + name + `","uid":64101}}` + "\x00"
			if err != nil || text != want {
				t.Errorf("asked %q, %v", text, err)
			}
			io.WriteString(c, answer)
			c.Close()
		}
	})
}

func TestUserDatabase(t *testing.T) {
	const none = `{"error":"io.systemd.UserDatabase.NoRecordFound","parameters":{}}` + "\x00"
	for name, test := range map[string]struct {
		answers   map[string]string
		found, ok bool
	}{
		"nobody to ask":       {nil, false, true},
		"nobody knows it":     {map[string]string{"io.systemd.DynamicUser": none, "io.systemd.Home": none}, false, true},
		"one knows it":        {map[string]string{"io.systemd.DynamicUser": none, "io.systemd.Home": `{"parameters":{"record":{"uid":64101},"incomplete":false}}` + "\x00"}, true, true},
		"one cannot tell":     {map[string]string{"io.systemd.Home": `{"error":"io.systemd.UserDatabase.ServiceNotAvailable"}` + "\x00"}, false, false},
		"one says nothing":    {map[string]string{"io.systemd.Home": ""}, false, false},
		"one says half of it": {map[string]string{"io.systemd.Home": `{"error":"io.systemd.UserDatabase.NoRecordFound"`}, false, false},
		"one says garbage":    {map[string]string{"io.systemd.Home": "[]\x00"}, false, false},
		"one says too little": {map[string]string{"io.systemd.Home": "{}\x00"}, false, false},
		"one says too much":   {map[string]string{"io.systemd.Home": strings.Repeat(" ", maxUserRecord) + none}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "udb")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			for service, answer := range test.answers {
				answerer(t, dir, service, answer)
			}
			found, asked, err := askUserDatabase(t.Context(), dir, 64101)
			if found != test.found || (err == nil) != test.ok {
				t.Errorf("%v, %v", found, err)
			}
			if err == nil && !found && len(asked) != len(test.answers) {
				t.Errorf("asked %q", asked)
			}
		})
	}
	if _, _, err := askUserDatabase(t.Context(), filepath.Join(t.TempDir(), "none"), 64101); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}
