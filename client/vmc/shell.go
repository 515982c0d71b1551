package vmc

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/auberge-vm/auberge/client/vsh"
)

// shell opens a login shell in a VM and ends vmc with its exit code.
func (a *app) shell(ctx context.Context, s *session, name, user string) error {
	conn, err := vsh.Dial(ctx, s.conn, name, a.owner)
	if err != nil {
		return withCode(ExitFailed, err)
	}
	opts := a.shellOptions()
	opts.User = user
	code, err := vsh.Run(ctx, conn, opts)
	return a.shellEnd(code, err)
}

// containerShell opens a login shell in a container and ends vmc with its exit
// code.
func (a *app) containerShell(ctx context.Context, s *session, vm, container string) error {
	code, err := vsh.RunInContainer(ctx, s.conn, vm, container, a.owner, a.shellOptions())
	return a.shellEnd(code, err)
}

func (a *app) shellOptions() *vsh.Options {
	opts := &vsh.Options{Stdout: a.out, Stderr: a.err}
	if a.in != nil {
		opts.Stdin = a.in
		opts.Pty = term.IsTerminal(int(a.in.Fd()))
	}
	if name, ok := os.LookupEnv("TERM"); ok && opts.Pty {
		opts.Env = map[string]string{"TERM": name}
	}
	return opts
}

func (a *app) shellEnd(code int, err error) error {
	if err != nil {
		fmt.Fprintln(a.err, "vmc:", err)
	}
	if code != 0 {
		return silentExit(code)
	}
	return nil
}
