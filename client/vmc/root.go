package vmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes of vmc.
const (
	ExitFailed      = 1 // the service refused or failed
	ExitUsage       = 2 // the command line is wrong
	ExitNotFound    = 3 // there is no such VM or disk
	ExitDenied      = 4 // the caller has not got the right
	ExitUnreachable = 5 // the bus or the service cannot be reached
)

// An exitError is an error with an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

// A silentExit ends vmc with an exit code when all has been said: that of a
// shell that ran in a VM, for one.
type silentExit int

func (s silentExit) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// app is what every command uses.
type app struct {
	in       *os.File
	out, err io.Writer

	bus   string
	json  bool
	owner string
}

// Main runs vmc and returns its exit code.
func Main(ctx context.Context, args []string, in *os.File, out, errs io.Writer) int {
	a := &app{in: in, out: out, err: errs}
	root := a.command()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	cmd, err := root.ExecuteContextC(ctx)
	var code silentExit
	var coded *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &coded):
		fmt.Fprintln(errs, "vmc:", harmless(err.Error()))
		return coded.code
	}
	// What cobra itself refuses is a matter of the command line.
	fmt.Fprintln(errs, "vmc:", strings.TrimRight(harmless(err.Error()), "\n"))
	fmt.Fprintf(errs, "Try \"%s --help\".\n", cmd.CommandPath())
	return ExitUsage
}

// Command is the tree of vmc's commands, for those who write it down.
func Command() *cobra.Command { return (&app{out: io.Discard, err: io.Discard}).command() }

const (
	groupVMs     = "vms"
	groupDisks   = "disks"
	groupCts     = "containers"
	groupAdmin   = "admin"
	groupScripts = "scripts"
)

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmc",
		Short: "Virtual machines with Linux containers inside",
		Long: "vmc starts, stops and inspects your virtual machines by way of vm_concierge, and the Linux\n" +
			"containers in them by way of vm_cicerone. A shell is what vsh(1) is for. With --json, answers are printed as the service\n" +
			"gives them: the names of its contract, and all fields even when they are empty.\n\n" +
			"Exit codes: 0 success, 1 the service refused or failed, 2 wrong command line,\n" +
			"3 no such VM, disk or container, 4 access denied, 5 the bus or the service cannot be reached.\n" +
			"With --shell, the exit code is that of the shell.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs, // a command that there is not gets here
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			var all []string
			for _, c := range cmd.Commands() {
				if c.IsAvailableCommand() {
					all = append(append(all, c.Name()), c.Aliases...)
				}
			}
			return fmt.Errorf("there is no command %q%s", args[0], suggestion(args[0], all))
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.bus, "bus", "system", "the bus: system, session or a D-Bus `ADDRESS`")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.StringVar(&a.owner, "owner", "", "`OWNER` of the VM: a uid (an administrator's right) or a label of your own (default: you)")
	completeFlag(root, "bus", words("system", "session"))
	completeFlag(root, "owner", words())
	root.AddGroup(&cobra.Group{ID: groupVMs, Title: "Virtual machines:"},
		&cobra.Group{ID: groupDisks, Title: "Disks and settings:"}, &cobra.Group{ID: groupCts, Title: "Containers:"},
		&cobra.Group{ID: groupAdmin, Title: "The machine:"}, &cobra.Group{ID: groupScripts, Title: "For scripts:"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupVMs, a.startCommand(), a.stopCommand(), a.suspendCommand(), a.resumeCommand(),
		a.listCommand(), a.infoCommand(), a.logsCommand(), a.timeSyncCommand())
	add(groupDisks, a.createCommand(), a.resizeCommand(), a.destroyCommand(), a.configCommand(), a.imageCommand(), a.vsockAllowCommand())
	add(groupCts, a.containerCommand(), a.containersCommand(), a.startContainerCommand(), a.stopContainerCommand(), a.deleteContainerCommand(),
		a.exportContainerCommand(), a.importContainerCommand(), a.appCommand(), a.packageCommand(), a.sshConfigCommand())
	add(groupAdmin, a.quotaCommand(), a.diskCommand(), a.doctorCommand())
	add(groupScripts, a.callCommand(), a.encodeCommand(), a.decodeCommand(), a.monitorCommand(), a.stateCommand(), a.operationsCommand())
	root.SetFlagErrorFunc(unknownFlag)
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			removeShell(c, "powershell")
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // and refuse other shells
		}
	}
	return root
}

// removeShell takes a shell that this service's systems have not got out of
// the completion command.
func removeShell(completion *cobra.Command, name string) {
	for _, c := range completion.Commands() {
		if c.Name() == name {
			completion.RemoveCommand(c)
		}
	}
}

// unknownFlag adds to an error about a flag which one may have been meant.
func unknownFlag(cmd *cobra.Command, err error) error {
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return err
	}
	var all []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { all = append(all, "--"+f.Name) })
	return fmt.Errorf("%w%s", err, suggestion("--"+missing.GetSpecifiedName(), all))
}
