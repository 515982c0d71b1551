// Command vsh runs a shell or a command in a virtual machine, or in a container
// in one.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/client/vsh"
)

// busTimeout bounds finding the VM, as upstream's vsh does.
const busTimeout = 30 * time.Second

func main() {
	code, err := run(context.Background(), os.Args[1:])
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		fmt.Fprintf(os.Stderr, "vsh: %v\n", err)
	}
	os.Exit(code)
}

// run is the whole program. Without an exit code of the guest's it returns
// vsh.ExitLost, or what vsh.Run says.
func run(ctx context.Context, args []string) (int, error) {
	code := vsh.ExitLost
	cmd := newCommand(func(c *config) (err error) {
		code, err = c.connect(ctx)
		return err
	}, &code)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	return code, err
}

// config is what the command line says.
type config struct {
	bus, vm, owner string
	opts           vsh.Options
}

const longHelp = `Run a shell or a command in a virtual machine, or in a container in it.

Without a command, vsh starts a login shell: in a container, as the container's
user. What follows -- is run instead, after assignments to environment
variables:

  vsh VM -- LANG=C ls -l /
  vsh VM penguin

In a container, --cwd with the process number of another vsh of yours starts
where the shell of that one is now.

The exit code is the command's, 128+N if signal N ended it. If the session was
lost, or never began, it is 123.`

// newCommand builds the command line; do gets what it says. Asking for help
// sets code to 0.
func newCommand(do func(*config) error, code *int) *cobra.Command {
	f := flags{}
	cmd := &cobra.Command{
		Use:               "vsh [flags] [VM [CONTAINER]] [-- [VAR=VALUE...] [COMMAND [ARG...]]]",
		Short:             "Run a shell or a command in a virtual machine or a container",
		Long:              longHelp,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.config(cmd, args)
			if err != nil {
				return fmt.Errorf("%w; see vsh --help", err)
			}
			return do(c)
		},
	}
	f.define(cmd.Flags())
	help := cmd.HelpFunc()
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		*code = 0
		help(c, args)
	})
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; see vsh --help", err)
	})
	return cmd
}

type flags struct {
	bus, vm, owner, container, user, cwd, cid string
	tty, noTTY                                bool
}

func (f *flags) define(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringVar(&f.bus, "bus", bus.System, "bus of the concierge: system, session or an `ADDRESS`")
	fs.StringVar(&f.vm, "vm-name", "", "`NAME` of the VM")
	fs.StringVar(&f.owner, "owner-id", "", "`ID` of the VM's owner (default you)")
	fs.StringVar(&f.container, "target-container", "", "`NAME` of a container in the VM")
	fs.StringVar(&f.user, "user", "", "`USER` in the guest (default the guest's choice)")
	fs.StringVar(&f.cwd, "cwd", "", "start in this directory, or in that of a process: `DIR|PID`")
	fs.BoolVarP(&f.tty, "tty", "t", false, "run on a terminal even if vsh does not")
	fs.BoolVarP(&f.noTTY, "no-tty", "T", false, "run on pipes even if vsh runs on a terminal")
	fs.StringVar(&f.cid, "cid", "", "not supported")
	fs.MarkHidden("cid")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
}

func (f *flags) config(cmd *cobra.Command, args []string) (*config, error) {
	if cmd.Flags().Changed("cid") {
		return nil, errors.New("--cid is not supported: any user of this machine can dial a VM by its CID, " +
			"so Auberge connects you to your VMs by name; use --vm-name")
	}
	named, command := args, []string(nil)
	if n := cmd.ArgsLenAtDash(); n >= 0 {
		named, command = args[:n], args[n:]
	}
	if len(named) > 2 {
		return nil, fmt.Errorf("unexpected argument %q: put -- before a command, as in: vsh VM -- ls", named[2])
	}
	names := []*string{&f.vm, &f.container}
	for i, name := range named {
		if *names[i] != "" && *names[i] != name {
			return nil, fmt.Errorf("both %q and %q are named", *names[i], name)
		}
		*names[i] = name
	}
	if f.vm == "" {
		return nil, errors.New("which VM? give its name: vsh VM")
	}
	if f.tty && f.noTTY {
		return nil, errors.New("-t and -T exclude each other")
	}
	c := &config{bus: f.bus, vm: f.vm, owner: f.owner, opts: vsh.Options{
		Target: f.container,
		User:   f.user,
		Cwd:    f.cwd,
		Pty:    f.tty || !f.noTTY && vsh.IsTerminal(os.Stdin) && vsh.IsTerminal(os.Stdout),
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}}
	if pid, err := strconv.ParseInt(f.cwd, 10, 32); err == nil {
		c.opts.Cwd, c.opts.CwdPID = "", int32(pid)
	}
	c.opts.Env, c.opts.Argv = vsh.SplitCommand(command)
	c.addTerm()
	return c, nil
}

// addTerm passes the kind of terminal on, to a process that gets one.
func (c *config) addTerm() {
	term, ok := os.LookupEnv("TERM")
	if !c.opts.Pty || !ok {
		return
	}
	if c.opts.Env == nil {
		c.opts.Env = map[string]string{}
	}
	if _, set := c.opts.Env["TERM"]; !set {
		c.opts.Env["TERM"] = term
	}
}

// connect finds the VM and runs the session.
func (c *config) connect(ctx context.Context) (int, error) {
	find, cancel := context.WithTimeoutCause(ctx, busTimeout,
		fmt.Errorf("no answer from the bus within %v", busTimeout))
	defer cancel()
	conn, err := bus.Connect(find, c.bus)
	if err != nil {
		return vsh.ExitLost, err
	}
	if c.opts.Target != "" {
		defer conn.Close()
		return vsh.RunInContainer(ctx, conn, c.vm, c.opts.Target, c.owner, &c.opts)
	}
	stream, err := vsh.Dial(find, conn, c.vm, c.owner)
	conn.Close()
	if err != nil {
		return vsh.ExitLost, err
	}
	return vsh.Run(ctx, stream, &c.opts)
}
