package maitred

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/auberge-vm/auberge/guest/core"
	"golang.org/x/sys/unix"
)

// stageTwo is the name under which stage one executes this binary again. The
// kernel calls PID 1 by its path, so the two cannot be confused.
const stageTwo = "maitred"

// Main runs the binary in the role that its name and process ID give it, and
// returns the exit status. As PID 1 it returns only when all else failed.
func Main(args []string) int {
	if os.Getpid() != 1 {
		return runCommand(args)
	}
	stage := runStageOne
	if args[0] == stageTwo {
		stage = runStageTwo
	}
	// Without PID 1 the kernel panics and tells nobody why.
	defer func() {
		if r := recover(); r != nil {
			core.Die(fmt.Errorf("panic: %v", r))
		}
	}()
	core.Die(stage())
	return 1
}

// commandNames are the names under which the binary powers the VM off.
var commandNames = []string{"poweroff", "shutdown", "halt"}

// runCommand is what the binary does for people in the VM.
func runCommand(args []string) int {
	name := filepath.Base(args[0])
	if name == "maitred" && len(args) > 1 {
		args = args[1:]
		name = args[0]
	}
	var err error
	switch name {
	case "poweroff", "shutdown", "halt":
		err = requestPowerOff(args[1:])
	default:
		fmt.Fprintln(os.Stderr, "usage: maitred poweroff    switch this VM off, in order")
		return 2
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// requestPowerOff asks PID 1 for an orderly end of the VM.
func requestPowerOff(options []string) error {
	for _, o := range options {
		switch o {
		case "now", "+0", "-h", "-P", "-p", "--poweroff", "--halt":
		default:
			return fmt.Errorf("%q is not known here: a VM can be powered off at once and nothing else", o)
		}
	}
	err := unix.Kill(1, unix.SIGPWR)
	if errors.Is(err, unix.EPERM) {
		return errors.New("only root may power off this VM")
	}
	return err
}
