// Package dbustest runs private buses for tests, with clients of different
// users. It knows nothing of the services that the tests put on them.
package dbustest

import (
	"bufio"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// lax is what a session bus allows: everything to everybody.
const lax = `<busconfig>
  <type>session</type>
  <auth>EXTERNAL</auth>
  <listen>@LISTEN@</listen>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
`

// A Bus is a dbus-daemon of a test's own.
type Bus struct {
	Address string

	t      testing.TB
	config string
	daemon *exec.Cmd
}

// Lax starts a bus that allows everything, as a session bus does. Elements of
// a bus configuration may be added, limits for instance.
func Lax(t testing.TB, more ...string) *Bus {
	t.Helper()
	return start(t, strings.Replace(lax, "</busconfig>", strings.Join(more, "")+"</busconfig>", 1), nil)
}

// System starts a bus that treats its clients as the system bus does, with
// Auberge's policy files. The test's own user stands in for the services'.
func System(t testing.TB) *Bus {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return SystemFor(t, me.Username)
}

// polkitPolicy lets the test's user stand in for polkit.
const polkitPolicy = `<busconfig>
  <policy user="@USER@"><allow own="org.freedesktop.PolicyKit1"/></policy>
  <policy context="default"><allow send_destination="org.freedesktop.PolicyKit1"/></policy>
</busconfig>
`

// SystemFor is System with another user in place of the services'.
func SystemFor(t testing.TB, serviceUser string) *Bus {
	t.Helper()
	dir := policyDir()
	template, err := os.ReadFile(filepath.Join(dir, "private-bus.conf.in"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no policy files in %s: %v", dir, err)
	}
	policies := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		policies[filepath.Base(file)] = strings.NewReplacer(`user="auberge"`, `user="`+serviceUser+`"`,
			`user="auberge-cicerone"`, `user="`+serviceUser+`"`).Replace(string(text))
	}
	policies["polkit.conf"] = strings.ReplaceAll(polkitPolicy, "@USER@", serviceUser)
	return start(t, string(template), policies)
}

// policyDir is policy/bus of the source tree that this file is in.
func policyDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "policy", "bus")
}

func start(t testing.TB, template string, policies map[string]string) *Bus {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Fatal("needs dbus-daemon:", err)
	}
	// Other users' clients must reach the socket, which they can't in
	// t.TempDir.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	policyDir := filepath.Join(dir, "policy")
	if err := os.Mkdir(policyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range policies {
		write(t, filepath.Join(policyDir, name), text)
	}
	b := &Bus{t: t, Address: "unix:path=" + filepath.Join(dir, "bus"), config: filepath.Join(dir, "bus.conf")}
	write(t, b.config, strings.NewReplacer("@LISTEN@", b.Address, "@POLICY_DIR@", policyDir).Replace(template))
	b.Start()
	t.Cleanup(b.Stop)
	return b
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Start starts the daemon again after Stop, at the same address.
func (b *Bus) Start() {
	b.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	b.daemon = exec.Command("dbus-daemon", "--config-file="+b.config, "--nofork", "--nopidfile", "--print-address=3")
	b.daemon.ExtraFiles = []*os.File{w}
	b.daemon.Stderr = b.t.Output()
	err = b.daemon.Start()
	w.Close()
	if err != nil {
		b.t.Fatal(err)
	}
	// It prints its address when it listens.
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		b.t.Fatal("dbus-daemon did not start:", err)
	}
}

// Stop ends the daemon and with it every connection.
func (b *Bus) Stop() {
	if b.daemon == nil {
		return
	}
	b.daemon.Process.Kill()
	b.daemon.Wait()
	b.daemon = nil
}
