// Bench measures Auberge against what it is built on and prints a Markdown
// table. It gates nothing. make bench builds what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/test/testbed"
)

func main() {
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start() error {
	if len(os.Args) > 1 && os.Args[1] == echoCommand {
		return echoMain(os.Args[2:])
	}
	if err := testbed.Enter(); err != nil {
		return err
	}
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built programs")
	flag.StringVar(&o.image, "image", "", "directory of the guest image")
	flag.StringVar(&o.libvirt, "libvirt", "", "root directory below which libvirt-dbus lies (default: found or fetched when it is needed)")
	flag.StringVar(&o.accel, "accel", "tcg", "accelerator of the VMs, kvm or tcg")
	flag.IntVar(&o.pairs, "pairs", minPairs, "how often A and B are compared")
	flag.IntVar(&o.vms, "vms", 1000, "how many VMs are many")
	flag.StringVar(&o.only, "only", "", "parts to measure, separated by commas: "+strings.Join(partNames(), ", "))
	flag.Parse()
	for name := range strings.SplitSeq(o.only, ",") {
		if name != "" && !slices.Contains(partNames(), name) {
			return fmt.Errorf("there is no part %q; the parts are %s", name, strings.Join(partNames(), ", "))
		}
	}
	if o.pairs < minPairs {
		fmt.Fprintf(os.Stderr, "bench: fewer than %d pairs say little\n", minPairs)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return o.run(ctx)
}

// A part measures one thing and adds it to the table.
type part struct {
	name string
	run  func(context.Context, *options, *table) error
}

var parts = []part{
	{"calls", benchCalls},
	{"many", benchMany},
	{"boot", benchBoot},
	{"streams", benchStreams},
	{"relay", benchRelay},
	{"create", benchCreate},
	{"start", benchStart},
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// run measures part after part. One that fails is told of, and the others are
// measured all the same.
func (o *options) run(ctx context.Context) (err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	log, err := os.CreateTemp("", "auberge-bench-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	o.log = log
	base := "" // as root, what is private to the testbed and ends with it
	if os.Geteuid() == 0 {
		base = testbed.Base
	}
	if o.crowdDir, err = os.MkdirTemp(base, "crowd"); err != nil {
		return err
	}
	defer os.RemoveAll(o.crowdDir)
	if err := os.Chmod(o.crowdDir, 0o755); err != nil {
		return err
	}
	defer func() {
		if o.kept != nil {
			o.kept.close()
		}
	}()
	t := &table{}
	where := machine(o.accel)
	var failed []error
	for _, p := range parts {
		if o.only != "" && !strings.Contains(","+o.only+",", ","+p.name+",") {
			continue
		}
		begin := time.Now()
		fmt.Fprintf(os.Stderr, "bench: %s ...\n", p.name)
		if err := p.run(ctx, o, t); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.name, err))
			fmt.Fprintf(os.Stderr, "bench: %s failed: %v\n", p.name, err)
		}
		if ctx.Err() != nil {
			os.Remove(log.Name())
			return errors.New("interrupted")
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %.0f s\n", p.name, time.Since(begin).Seconds())
	}
	t.print(os.Stdout)
	fmt.Println(where)
	if len(failed) > 0 {
		return fmt.Errorf("%w (the daemons' log is %s)", errors.Join(failed...), log.Name())
	}
	os.Remove(log.Name())
	return nil
}
