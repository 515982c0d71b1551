package vmc

import (
	"context"
	"fmt"

	"golang.org/x/term"

	"github.com/auberge-vm/auberge/client/vsh"
)

// shell opens a login shell in a VM and ends vmc with its exit code.
func (a *app) shell(ctx context.Context, s *session, name, user string) error {
	conn, err := vsh.Dial(ctx, s.conn, name, a.owner)
	if err != nil {
		return withCode(ExitFailed, err)
	}
	opts := &vsh.Options{User: user, Stdout: a.out, Stderr: a.err}
	if a.in != nil {
		opts.Stdin = a.in
		opts.Pty = term.IsTerminal(int(a.in.Fd()))
	}
	code, err := vsh.Run(ctx, conn, opts)
	if err != nil {
		fmt.Fprintln(a.err, "vmc:", err)
	}
	if code != 0 {
		return silentExit(code)
	}
	return nil
}
