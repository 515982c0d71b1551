// Demo shows Auberge's main job on this machine: a private bus with our
// policy, vm_concierge and vm_cicerone as users of their own, and an ordinary
// user who starts a VM and a container in it, installs a package there and
// stops both. make run builds what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/auberge-vm/auberge/test/testbed"
)

func main() {
	if err := testbed.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	bin := flag.String("bin", "bin", "directory of the built programs")
	image := flag.String("image", "", "directory of the guest image")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *image); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, image string) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	log, err := os.CreateTemp("", "auberge-demo-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	bed, err := testbed.New(ctx, testbed.Options{Bin: bin, Image: image, Log: log})
	if err != nil {
		return err
	}
	defer bed.Close()
	if _, err := bed.StartConcierge(ctx); err != nil {
		return fmt.Errorf("%w (the log is %s)", err, log.Name())
	}
	if _, err := bed.StartCicerone(ctx); err != nil {
		return fmt.Errorf("%w (the log is %s)", err, log.Name())
	}
	user := bed.Caller()
	fmt.Printf("# A private bus with Auberge's policy; vm_concierge and vm_cicerone are on it, guests have no way out.\n")
	d := &demo{ctx: ctx, bed: bed, user: user}
	d.do("vmc", "config", "termina", "--memory", "3G", "--cpus", "2")
	d.do("vmc", "start", "termina", "--size", "6G")
	d.do("vmc", "list")
	d.do("vsh", "termina", "--", "uname", "-a")
	fmt.Println("# A container in it, from the image that comes along, with this user in it.")
	d.do("vmc", "container", "termina", "penguin", "--no-shell")
	d.do("vmc", "containers", "termina")
	d.do("vsh", "termina", "penguin", "--", "id")
	d.do("vsh", "termina", "penguin", "--", "cat", "/etc/os-release")
	fmt.Println("# A package, made on the spot, goes in by a stream and is installed by PackageKit.")
	d.installPackage()
	if term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
		fmt.Println("# A shell in the container; leave it with exit.")
		d.shell()
	}
	d.do("vmc", "stop-container", "termina", "penguin")
	d.do("vmc", "stop", "termina")
	d.do("vmc", "list")
	if d.err != nil {
		return fmt.Errorf("%w (the log is %s)", d.err, log.Name())
	}
	if pids := bed.Processes(); len(pids) > 0 {
		return fmt.Errorf("processes of the VM are left: %v", pids)
	}
	fmt.Println("# Nothing of the VM is left running.")
	os.Remove(log.Name())
	return nil
}

// A demo runs commands as its user until one fails.
type demo struct {
	ctx  context.Context
	bed  *testbed.Bed
	user testbed.User
	err  error
}

func (d *demo) do(name string, args ...string) { d.doWith(nil, name, args...) }

// doWith runs a command with an input.
func (d *demo) doWith(in *os.File, name string, args ...string) {
	if d.err == nil {
		d.err = d.ctx.Err()
	}
	if d.err != nil {
		return
	}
	line := name + " " + strings.Join(args, " ")
	if in != nil {
		line += " <" + filepath.Base(in.Name())
	}
	fmt.Printf("%s$ %s\n", d.user.Name, line)
	cmd := d.bed.Command(d.user, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if in != nil {
		cmd.Stdin = in
	}
	if err := cmd.Run(); err != nil {
		d.err = fmt.Errorf("%s: %w", line, err)
	}
}

// installPackage makes a Debian package, installs it in the container and runs
// what is in it.
func (d *demo) installPackage() {
	if d.err != nil {
		return
	}
	deb, err := makePackage(d.ctx)
	if err != nil {
		d.err = fmt.Errorf("make a package: %w", err)
		return
	}
	defer os.RemoveAll(filepath.Dir(deb.Name()))
	defer deb.Close()
	d.doWith(deb, "vsh", "termina", "penguin", "--", "dd", "status=none", "of=/var/tmp/hello-auberge.deb")
	d.do("vmc", "package", "info", "termina", "penguin", "/var/tmp/hello-auberge.deb")
	d.do("vmc", "package", "install", "termina", "penguin", "/var/tmp/hello-auberge.deb")
	d.do("vsh", "termina", "penguin", "--", "hello-auberge")
}

// makePackage builds a small package with one script in it.
func makePackage(ctx context.Context) (*os.File, error) {
	dir, err := os.MkdirTemp("", "auberge-demo-deb-")
	if err != nil {
		return nil, err
	}
	deb := filepath.Join(dir, "hello-auberge.deb")
	for name, text := range map[string]string{
		"root/DEBIAN/control": "Package: hello-auberge\nVersion: 1.0\nArchitecture: all\nMaintainer: Auberge <auberge@localhost>\n" +
			"Section: misc\nPriority: optional\nDescription: says hello from a container\n One script that says where it runs.\n",
		"root/usr/bin/hello-auberge": "#!/bin/sh\necho \"Hello from $(hostname), where $(id -un) has installed a package.\"\n",
	} {
		path := filepath.Join(dir, name)
		if err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			break
		}
	}
	if err == nil {
		cmd := exec.CommandContext(ctx, "dpkg-deb", "--root-owner-group", "--build", filepath.Join(dir, "root"), deb)
		cmd.Stderr = os.Stderr
		err = cmd.Run()
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(deb)
	}
	if err != nil {
		os.RemoveAll(dir)
	}
	return f, err
}

// shell gives the terminal to a shell in the container, whose exit code is nobody's
// business here.
func (d *demo) shell() {
	if d.err != nil {
		return
	}
	fmt.Printf("%s$ vsh termina penguin\n", d.user.Name)
	cmd := d.bed.Command(d.user, "vsh", "termina", "penguin")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var code interface{ ExitCode() int }
	if err := cmd.Run(); err != nil && !errors.As(err, &code) {
		d.err = err
	}
}
