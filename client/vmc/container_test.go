package vmc

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
)

// try runs vmc and holds what it says against what is wanted.
func (h *house) try(address string, code int, out, errs string, args ...string) {
	h.t.Helper()
	at := 0
	if args[0] == "__complete" {
		at = 1
	}
	args = slices.Insert(slices.Clone(args), at, "--bus", address)
	gotOut, gotErrs, got := vmc(h.t, "", args...)
	if got != code || !strings.Contains(gotOut, out) || !strings.Contains(gotErrs, errs) {
		h.t.Errorf("vmc %q: code %d, want %d;\nout: %q, want %q\nerr: %q, want %q", args, got, code, gotOut, out, gotErrs, errs)
	}
}

// The way of a container from nothing to nothing.
func TestContainerLife(t *testing.T) {
	h, bus := openHouse(t)
	try := func(code int, out, errs string, args ...string) {
		t.Helper()
		h.try(bus.Address, code, out, errs, args...)
	}
	h.on("StartLxd", func(string) error {
		h.say(&ct.StartLxdProgressSignal{Status: ct.StartLxdProgressSignal_STARTING})
		h.say(&ct.StartLxdProgressSignal{Status: ct.StartLxdProgressSignal_STARTED})
		return nil
	})
	try(0, "penguin runs in vm, its user is alice", "penguin: downloading its image, 0 %\npenguin: downloading its image, 50 %\npenguin: downloading its image, 100 %\n",
		"container", "vm", "penguin", "--user", "alice")
	try(0, `"was_running": true`, "", "container", "vm", "penguin", "--json")
	try(0, "penguin", "", "containers", "vm")
	try(0, "Debian 13", "", "containers")
	try(0, `"status": "running"`, "", "containers", "vm", "--json")
	try(0, "penguin is stopped", "", "stop-container", "vm", "penguin")
	try(0, "penguin is stopped", "", "stop-container", "vm", "penguin")
	try(0, "penguin runs", "starting it", "start-container", "vm", "penguin")
	try(2, "", "confirm with --yes", "delete-container", "vm", "penguin")
	try(0, "penguin is gone", "", "delete-container", "vm", "penguin", "--yes")
	h.set("web", "stopped")
	try(3, "", `vm has no container "wbe"; did you mean web?`, "start-container", "vm", "wbe")
	try(3, "", `vm has no container "wbe"; did you mean web?`, "stop-container", "vm", "wbe")
	try(3, "", `vm has no container "wbe"; did you mean web?`, "delete-container", "vm", "wbe", "--yes")
	try(3, "", `"none" does not run`, "containers", "none")
	try(2, "", "name no image", "container", "vm", "x", "images", "debian")
	try(2, "", "not 3 arguments", "container", "vm", "x", "https://images")
	try(0, "web\n:4", "", "__complete", "stop-container", "vm", "")
	try(0, "vm\n:4", "", "__complete", "stop-container", "")
	try(0, "hello\nweb\n:4", "", "__complete", "app", "launch", "vm", "")
}

// What goes wrong is said, with its reason.
func TestContainerFailures(t *testing.T) {
	h, bus := openHouse(t)
	h.on("CreateLxdContainer", func(name string) error {
		h.say(&ct.LxdContainerCreatedSignal{ContainerName: name, Status: ct.LxdContainerCreatedSignal_DOWNLOAD_TIMED_OUT, FailureReason: "no bytes for 2 minutes"})
		return nil
	})
	h.try(bus.Address, 1, "", "create the container x: download timed out: no bytes for 2 minutes", "container", "vm", "x")
	h.on("CreateLxdContainer", func(string) error { return errors.New("VM \"vm\" has no tremplin") })
	h.try(bus.Address, 1, "", "has no tremplin", "container", "vm", "x")
	h.on("CreateLxdContainer", func(string) error { return nil }) // and nothing ever comes
	h.try(bus.Address, 1, "", "not done within 1 seconds", "container", "vm", "x", "--timeout", "1")
	h.set("x", "stopped")
	h.on("StartLxdContainer", func(name string) error {
		h.say(&ct.LxdContainerStartingSignal{ContainerName: name, Status: ct.LxdContainerStartingSignal_FAILED, FailureReason: "no space"})
		return nil
	})
	h.try(bus.Address, 1, "", "start the container x: failed: no space", "start-container", "vm", "x")
	h.on("StartLxdContainer", func(name string) error {
		h.say(&ct.ContainerShutdownSignal{ContainerName: name})
		return nil
	})
	h.try(bus.Address, 1, "", "stopped before its agent reported", "start-container", "vm", "x")
	h.on("StartLxd", func(string) error {
		h.say(&ct.StartLxdProgressSignal{Status: ct.StartLxdProgressSignal_FAILED, FailureReason: "the pool is damaged"})
		return nil
	})
	h.try(bus.Address, 1, "", "start the container manager of vm: the pool is damaged", "start-container", "vm", "x")
}

// A vm_cicerone that is restarted in the middle is asked again, and one that
// does not come back is an error.
func TestCiceroneRestarts(t *testing.T) {
	h, bus := openHouse(t)
	began := make(chan struct{}, 10)
	pending := func(string) error { began <- struct{}{}; return nil }
	h.on("CreateLxdContainer", pending)
	p := begin(t, "container", "vm", "x", "--bus", bus.Address)
	await(t, began)
	h.stop()
	h.set("x", "stopped") // while nobody could tell
	h.serve(bus)
	p.ends(0)

	// An archive in the middle is lost with it.
	h.on("ExportContainer", pending)
	file := filepath.Join(t.TempDir(), "x.tar.gz")
	p = begin(t, "export-container", "vm", "x", file, "--bus", bus.Address)
	await(t, began)
	h.stop()
	h.serve(bus)
	p.ends(1)
	p.errs.find("restarted in the middle: do it again")
	empty(t, filepath.Dir(file))

	// A package goes on without it, in the container.
	h.on("InstallLinuxPackage", pending)
	h.set("x", "running")
	p = begin(t, "package", "install", "vm", "x", "hello;1;amd64;", "--bus", bus.Address)
	await(t, began)
	h.stop()
	h.set("x", "stopped")
	h.serve(bus)
	p.ends(1)
	p.errs.find("the container has stopped in the middle")

	defer func(d time.Duration) { returnTime = d }(returnTime)
	returnTime = 100 * time.Millisecond
	h.set("x", "running")
	p = begin(t, "package", "install", "vm", "x", "hello;1;amd64;", "--bus", bus.Address)
	await(t, began)
	h.stop()
	p.ends(ExitUnreachable)
	p.errs.find("did not come back within 100ms")
}

func await(t *testing.T, ch chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatal("it does not begin")
	}
}

// find reads lines until one says something.
func (l *lines) find(says string) {
	l.t.Helper()
	var seen []string
	for line := range l.ch {
		if seen = append(seen, line); strings.Contains(line, says) {
			return
		}
	}
	l.t.Errorf("no line says %q: %q", says, seen)
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
}

func TestPackages(t *testing.T) {
	h, bus := openHouse(t)
	h.set("penguin", "running")
	try := func(code int, out, errs string, args ...string) {
		t.Helper()
		h.try(bus.Address, code, out, errs, append([]string{"package"}, args...)...)
	}
	try(0, "It says?[2J\nhello.", "", "info", "vm", "hello")
	try(0, `"summary": "Says hello"`, "", "info", "vm", "penguin", "/tmp/hello.deb", "--json")
	try(1, "", "look for the package hallo: no such package", "install", "vm", "hallo")
	try(0, "hello is installed", "hello: downloading, 40 %\nhello: installing, 90 %\n", "install", "vm", "hello")
	try(0, "/tmp/hello.deb is installed", "", "install", "vm", "penguin", "/tmp/hello.deb")
	try(1, "", "install /tmp/broken.deb: it is broken", "install", "vm", "/tmp/broken.deb")
	try(0, "is removed", "hello: removing, 20 %", "remove", "vm", "hello")
	try(1, "", "no package owns it", "remove", "vm", "penguin", "other")
	h.on("InstallLinuxPackage", func(string) error { return errBusy })
	try(1, "", "another package is being installed", "install", "vm", "/tmp/hello.deb")
	h.on("InstallLinuxPackage", func(string) error { h.set("penguin", "stopped"); return nil })
	try(1, "", "the container has stopped in the middle", "install", "vm", "/tmp/hello.deb")
}

func TestApplications(t *testing.T) {
	t.Setenv("LC_ALL", "de_AT.UTF-8")
	h, bus := openHouse(t)
	icon := filepath.Join(t.TempDir(), "icon")
	h.try(bus.Address, 0, "Hallo", "", "app", "list", "vm")
	h.try(bus.Address, 0, `"container_name": "web"`, "", "app", "list", "vm", "web", "--json")
	h.try(bus.Address, 0, "", "", "app", "launch", "vm", "hello", "/tmp/a", "/tmp/b")
	h.try(bus.Address, 0, "", "", "app", "launch", "vm", "web", "hello", "/tmp/a")
	h.try(bus.Address, 1, "", "launch other: no such application", "app", "launch", "vm", "other")
	h.try(bus.Address, 2, "", `"b" is no absolute path`, "app", "launch", "vm", "web", "hello", "b")
	h.try(bus.Address, 0, "SVG", "", "app", "icon", "vm", "hello", "--size", "64", "-o", icon)
	h.try(bus.Address, 3, "", "has no icon", "app", "icon", "vm", "hello", "-o", icon)
	if b, err := os.ReadFile(icon); err != nil || string(b) != "<svg/>" {
		t.Errorf("%q, %v", b, err)
	}
	for _, want := range []string{"launch penguin hello /tmp/a,/tmp/b", "launch web hello /tmp/a"} {
		if h.called(want) != 1 {
			t.Errorf("no %q: %q", want, h.calls)
		}
	}
}

func TestArchives(t *testing.T) {
	h, bus := openHouse(t)
	h.set("x", "stopped")
	dir := t.TempDir()
	file := filepath.Join(dir, "x.tar.gz")
	h.try(bus.Address, 0, "x is in "+file, "x: exporting, 25 %", "export-container", "vm", "x", file)
	b, err := os.ReadFile(file)
	if err != nil || string(b) != "archive of x" {
		t.Fatalf("%q, %v", b, err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	h.try(bus.Address, 1, "", "exists already", "export-container", "vm", "x", file)
	h.try(bus.Address, 0, "", "", "export-container", "vm", "x", file, "--force")
	h.try(bus.Address, 3, "", `no container "y"`, "export-container", "vm", "y", filepath.Join(dir, "y"))
	h.try(bus.Address, 0, "z is imported", "z: reading, 30 %", "import-container", "vm", "z", file)
	if h.status("z") != "stopped" {
		t.Error("nothing was imported")
	}
	slow := filepath.Join(dir, "slow")
	if err := os.WriteFile(slow, []byte("slow"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.try(bus.Address, 0, "", "z: reading, 0 %\nz: reading, 30 %\nz: reading, 60 %\nz: unpacking\n", "import-container", "vm", "z", slow)
	os.Remove(slow)
	// What is not known is not said to be nothing.
	in, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p.WriteString("archive")
	p.Close()
	var errs bytes.Buffer
	if code := Main(t.Context(), []string{"--bus", bus.Address, "import-container", "vm", "z", "-"}, in, io.Discard, &errs); code != 0 || !strings.Contains(errs.String(), "z: reading\nz: unpacking\n") {
		t.Errorf("code %d, %q", code, &errs)
	}
	for text, says := range map[string]string{"large": "has 1 GiB free, and the container needs at least 3 GiB", "arm": "it is for aarch64 processors, and this VM has x86_64"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.try(bus.Address, 1, "", says, "import-container", "vm", "z", file)
	}
	h.try(bus.Address, 1, "", "is a directory", "import-container", "vm", "z", dir)

	// What fails leaves what was there.
	h.on("ExportContainer", func(name string) error {
		h.say(&ct.ExportLxdContainerProgressSignal{ContainerName: name, Status: ct.ExportLxdContainerProgressSignal_FAILED, FailureReason: "no space"})
		return nil
	})
	h.try(bus.Address, 1, "", "export the container x: failed: no space", "export-container", "vm", "x", file, "-f")
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, []byte("large")) && !bytes.Equal(b, []byte("arm")) {
		t.Errorf("%q, %v", b, err)
	}
	os.Remove(file)

	// Being interrupted cancels it, and what there is of it goes.
	began := make(chan struct{}, 1)
	h.on("ExportContainer", func(string) error { began <- struct{}{}; return nil })
	vmc := begin(t, "export-container", "vm", "x", file, "--bus", bus.Address)
	await(t, began)
	vmc.interrupt()
	vmc.ends(1)
	vmc.errs.find("export the container x: cancelled")
	empty(t, dir)
}

func TestValidUser(t *testing.T) {
	for name, want := range map[string]string{
		"alice": "alice", "Alice": "alice", `EXAMPLE\Alice.B`: "alice_b", "bob@example.org": "bob", "root": "user", "": "user",
		"-x": "x", "9lives": "lives", "ünal": "nal", strings.Repeat("a", 40): strings.Repeat("a", 31),
	} {
		if got := validUser(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// The example in shell needs busctl alone; it speaks to the same tables.
func TestShellExample(t *testing.T) {
	h, bus := openHouse(t)
	run := func(container string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "sh", "../../examples/shell/container.sh", "vm", container, "alice")
		cmd.Env = append(os.Environ(), "BUS=--address="+bus.Address, "PATIENCE=30")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	long := "x" + strings.Repeat("y", 130) // a length of two bytes
	for _, name := range []string{"penguin", long} {
		if out, err := run(name); err != nil || !strings.HasSuffix(out, "the start of "+name+": done\n") || h.status(name) != "running" {
			t.Errorf("%v: %s", err, out)
		}
	}
	if out, err := run("penguin"); err != nil || out != "penguin runs already\n" {
		t.Errorf("%v: %s", err, out)
	}
	h.set("bad", "stopped")
	h.on("StartLxdContainer", func(string) error { return errors.New("no space\x1b[2J, über") })
	if out, err := run("bad"); err == nil || !strings.Contains(out, "start bad: ") || !strings.Contains(out, "no space?[2J, über") {
		t.Errorf("%v: %s", err, out)
	}
}
