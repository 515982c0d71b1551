package containers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/test/testbed"
)

// What people and scripts use: busctl alone makes a container; vmc, vsh and a
// stock ssh use it; it goes into a file and comes back out of it.
func TestClients(t *testing.T) {
	fromTheStart(t)
	s := newStack(t)
	s.startVM()
	s.shellExample()
	s.shells()
	s.ssh()
	s.packages()
	s.archives()

	if got := s.run("vmc", "delete-container", vm, container, "--yes"); !strings.HasSuffix(got, container+" is gone") {
		t.Errorf("delete-container: %q", got)
	}
	if out, code := s.ends(nil, "vsh", vm, container); code != 123 || !strings.Contains(out, container) {
		t.Errorf("a shell in a container that is gone: code %d, %s", code, out)
	}
	s.run("vmc", "stop", vm)
}

// vmcAlone makes another container, stops it and starts it.
func (s *stack) vmcAlone() {
	s.t.Helper()
	if got := s.run("vmc", "container", vm, "web", "--no-shell", "--user", "alice"); !strings.Contains(got, "web runs in "+vm+", its user is alice") {
		s.t.Errorf("container: %q", got)
	}
	// What runs is privileged from its next start on.
	if got := s.run("vsh", vm, "web", "--", "cat", "/proc/self/uid_map"); strings.Join(strings.Fields(got), " ") == wholeMap {
		s.t.Errorf("nobody asked for it, and the container has all users of its VM: %q", got)
	}
	s.run("vmc", "start-container", vm, "web", "--privileged")
	s.run("vmc", "stop-container", vm, "web")
	if got := s.run("vmc", "containers", vm); !strings.Contains(got, "web") || !strings.Contains(got, "stopped") {
		s.t.Errorf("containers: %q", got)
	}
	s.run("vmc", "start-container", vm, "web")
	if got := s.run("vsh", vm, "web", "--", "sh", "-c", "cat /proc/self/uid_map; id -un; sudo -n id -u"); strings.Join(strings.Fields(got), " ") != wholeMap+" alice 0" {
		s.t.Errorf("a privileged container: %q", got)
	}
	if got := s.run("vmc", "containers"); !strings.Contains(got, "web") || !strings.Contains(got, "Debian") {
		s.t.Errorf("containers: %q", got)
	}
}

// wholeMap is /proc/self/uid_map where users are the VM's.
const wholeMap = "0 0 4294967295"

// ends is program with the exit code.
func (s *stack) ends(input []byte, name string, args ...string) (string, int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	c := s.Command(testbed.Alice, name, args...)
	c.Stdin = bytes.NewReader(input)
	out, err := (&cmd{Cmd: c, ctx: ctx}).CombinedOutput()
	if c.ProcessState == nil || ctx.Err() != nil {
		s.t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// shellExample runs the example in shell.
func (s *stack) shellExample() {
	s.t.Helper()
	script, err := os.ReadFile("../../examples/shell/container.sh")
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.Home(testbed.Alice), "container.sh")
	if err := os.WriteFile(path, script, 0o644); err != nil {
		s.t.Fatal(err)
	}
	// All of it in one command: what other tests wait for in three steps.
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*patience)
	defer cancel()
	if got, err := s.program(ctx, nil, "sh", path, vm, container, "alice"); err != nil || !strings.HasSuffix(got, "the start of "+container+": done\n") {
		s.t.Fatalf("container.sh: %v: %s", err, got)
	}
	if got := s.run("sh", path, vm, container, "alice"); got != container+" runs already" {
		s.t.Errorf("container.sh again: %s", got)
	}
}

// shells looks at sessions of vsh, and at what vmc says of the container.
func (s *stack) shells() {
	s.t.Helper()
	if out, code := s.ends(nil, "vsh", vm, container, "--", "sh", "-c", "id -un; id -u; echo $HOME; exit 7"); code != 7 || out != "alice\n1000\n/home/alice\n" {
		s.t.Errorf("vsh: code %d, %q", code, out)
	}
	if out, code := s.ends([]byte("sudo -n id -u; exit 3\n"), "vsh", "-T", vm, container); code != 3 || !strings.Contains(out, "0\n") {
		s.t.Errorf("a login shell: code %d, %q", code, out)
	}
	data := noise(256 << 10)
	if out, code := s.ends(data, "vsh", vm, container, "--", "cat"); code != 0 || out != string(data) {
		s.t.Errorf("%d bytes of %d came back by vsh, code %d", len(out), len(data), code)
	}
	var up map[string]any
	if err := json.Unmarshal([]byte(s.run("vmc", "container", vm, container, "--json")), &up); err != nil || up["was_running"] != true || up["container_username"] != "alice" {
		s.t.Errorf("vmc container: %v, %v", up, err)
	}
	if got := s.run("vmc", "__complete", "stop-container", vm, ""); !strings.HasPrefix(got, container+"\n") {
		s.t.Errorf("completion: %q", got)
	}
}

// noise is data in which every byte occurs.
func noise(n int) []byte {
	var out []byte
	for sum := sha256.Sum256(nil); len(out) < n; sum = sha256.Sum256(sum[:]) {
		out = append(out, sum[:]...)
	}
	return out[:n]
}

// ssh gets a stock ssh into the container, which knows the container's key.
func (s *stack) ssh() {
	s.t.Helper()
	config := filepath.Join(s.Home(testbed.Alice), "ssh_config")
	block := s.run("vmc", "ssh-config", vm, container)
	if err := os.WriteFile(config, []byte(block), 0o644); err != nil {
		s.t.Fatal(err)
	}
	host := container + "." + vm
	if out, code := s.ends(nil, "ssh", "-F", config, "-o", "BatchMode=yes", host, "id -un; exit 9"); code != 9 || out != "alice\n" {
		s.t.Errorf("ssh: code %d, %s\nby %s", code, out, block)
	}
	data := noise(128 << 10)
	if out, code := s.ends(data, "ssh", "-F", config, "-o", "BatchMode=yes", host, "cat"); code != 0 || out != string(data) {
		s.t.Errorf("%d bytes of %d came back by ssh, code %d", len(out), len(data), code)
	}
	var block2 struct {
		Known    string `json:"known_hosts"`
		Identity string `json:"identity_file"`
	}
	if err := json.Unmarshal([]byte(s.run("vmc", "ssh-config", vm, container, "--json")), &block2); err != nil {
		s.t.Fatal(err)
	}
	for _, file := range []string{block2.Known, block2.Identity} {
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			s.t.Errorf("%s: %v, %v", file, fi, err)
		}
	}
	// Another key than the container's is not believed.
	other := filepath.Join(s.t.TempDir(), "other")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other).CombinedOutput(); err != nil {
		s.t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	public, err := os.ReadFile(other + ".pub")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(block2.Known, append([]byte(host+" "), public...), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if out, code := s.ends(nil, "ssh", "-F", config, "-o", "BatchMode=yes", host, "true"); code != 255 || !strings.Contains(out, "Host key verification failed") {
		s.t.Errorf("with another host key: code %d, %s", code, out)
	}
}

// packages installs a package made on the spot.
func (s *stack) packages() {
	s.t.Helper()
	dir := s.t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, "root", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	write("DEBIAN/control", "Package: hello-clients\nVersion: 1.2\nArchitecture: all\nMaintainer: A <a@localhost>\nDescription: says hello\n")
	write("usr/bin/hello-clients", "#!/bin/sh\necho hello\n")
	deb := filepath.Join(dir, "hello.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", filepath.Join(dir, "root"), deb).CombinedOutput(); err != nil {
		s.t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		s.t.Fatal(err)
	}
	if out, code := s.ends(data, "vsh", vm, container, "--", "sh", "-c", "cat >/var/tmp/hello.deb"); code != 0 {
		s.t.Fatalf("copy the package: %s", out)
	}
	if got := s.run("vmc", "package", "info", vm, container, "/var/tmp/hello.deb"); !strings.Contains(got, "hello-clients") || !strings.Contains(got, "1.2") {
		s.t.Errorf("package info: %q", got)
	}
	if got := s.run("vmc", "package", "install", vm, container, "/var/tmp/hello.deb"); !strings.Contains(got, "installing") || !strings.HasSuffix(got, "/var/tmp/hello.deb is installed") {
		s.t.Errorf("package install: %q", got)
	}
	if got := s.shell("hello-clients"); got != "hello" {
		s.t.Errorf("what was installed says %q", got)
	}
	if out, code := s.ends(nil, "vmc", "package", "install", vm, container, "/etc/hostname"); code != 1 {
		s.t.Errorf("what is no package: code %d, %s", code, out)
	}
}
