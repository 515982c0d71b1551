// Demo shows Auberge's main job on this machine: a private bus with our
// policy, vm_concierge as a user of its own, and an ordinary user who starts a
// VM, uses it and stops it. make run builds what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
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
	user := bed.Caller()
	fmt.Printf("# A private bus with Auberge's policy; vm_concierge is on it, guests have no way out.\n")
	d := &demo{bed: bed, user: user}
	d.do("vmc", "start", "termina", "--size", "2G")
	d.do("vmc", "list")
	d.do("vmc", "info", "termina")
	d.do("vsh", "termina", "--", "uname", "-a")
	if term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
		fmt.Println("# A shell in the VM; leave it with exit.")
		d.shell()
	}
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
	bed  *testbed.Bed
	user testbed.User
	err  error
}

func (d *demo) do(name string, args ...string) {
	if d.err != nil {
		return
	}
	fmt.Printf("%s$ %s %s\n", d.user.Name, name, strings.Join(args, " "))
	cmd := d.bed.Command(d.user, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		d.err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
}

// shell gives the terminal to a shell in the VM, whose exit code is nobody's
// business here.
func (d *demo) shell() {
	if d.err != nil {
		return
	}
	fmt.Printf("%s$ vsh termina\n", d.user.Name)
	cmd := d.bed.Command(d.user, "vsh", "termina")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var code interface{ ExitCode() int }
	if err := cmd.Run(); err != nil && !errors.As(err, &code) {
		d.err = err
	}
}
