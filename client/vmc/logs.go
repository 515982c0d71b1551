package vmc

import (
	"context"
	"fmt"
	"io"
	"os"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var lines uint32
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a VM has logged",
		Long: "Show the log of the VM called NAME: the guest's kernel and its programs. With -f, go on\n" +
			"with what comes, also over a restart of the service, until the VM ends.",
		Example: `  vmc logs termina -n 20
  vmc logs termina -f`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running),
		RunE: func(cmd *cobra.Command, args []string) error {
			options := dict{"follow": godbus.MakeVariant(follow)}
			if cmd.Flags().Changed("lines") {
				options["lines"] = godbus.MakeVariant(lines)
			}
			return a.withSession(func(ctx context.Context, s *session, args []string) error {
				return a.logs(ctx, s, args[0], options)
			})(cmd, args)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().Uint32VarP(&lines, "lines", "n", 0, "only the last `N` lines (default: all)")
	completeFlag(cmd, "lines", words())
	return cmd
}

func (a *app) logs(ctx context.Context, s *session, name string, options dict) error {
	log, err := a.openLog(ctx, s, name, options)
	if err != nil {
		return err
	}
	defer log.Close()
	stop := context.AfterFunc(ctx, func() { log.Close() })
	defer stop()
	if _, err := io.Copy(a.out, log); err != nil && ctx.Err() == nil {
		return withCode(ExitFailed, fmt.Errorf("read the log of %s: %w", name, err))
	}
	return nil
}

func (a *app) openLog(ctx context.Context, s *session, name string, options dict) (*os.File, error) {
	var fd godbus.UnixFD
	if err := s.plain(ctx, "OpenVmLogs", []any{name, a.owner, options}, &fd); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "the log of "+name), nil
}
