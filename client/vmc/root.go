package vmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
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

// A silentExit ends vmc with the exit code of a shell that ran in a VM.
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
	err := root.ExecuteContext(ctx)
	var code silentExit
	var coded *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &coded):
		fmt.Fprintln(errs, "vmc:", err)
		return coded.code
	}
	// What cobra itself refuses is a matter of the command line.
	fmt.Fprintln(errs, "vmc:", err)
	fmt.Fprintln(errs, "Try \"vmc --help\".")
	return ExitUsage
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmc",
		Short: "Virtual machines with Linux containers inside",
		Long: "vmc starts, stops and inspects your virtual machines by way of vm_concierge.\n\n" +
			"Exit codes: 0 success, 1 the service refused or failed, 2 wrong command line,\n" +
			"3 no such VM or disk, 4 access denied, 5 the bus or the service cannot be reached.\n" +
			"With --shell, the exit code is that of the shell.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.bus, "bus", "system", "the bus: system, session or a D-Bus address")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.StringVar(&a.owner, "owner", "", "owner of the VM: a uid (an administrator's right) or a label of your own (default: you)")
	root.AddCommand(a.startCommand(), a.stopCommand(), a.listCommand(), a.infoCommand(),
		a.createCommand(), a.destroyCommand(), a.callCommand())
	return root
}
