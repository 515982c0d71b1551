// Command garcon is the agent in a container. As a server it runs in the
// session of the container's user and answers the host; as a client, started by
// programs of the container, it asks the host for something.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/guest/garcon/hostcalls"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	o := options{clientOptions: clientOptions{tokenPath: hostcalls.TokenPath, dial: hostcalls.DialHost, patience: clientPatience}}
	if err := command(&o).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "garcon:", err)
		os.Exit(1)
	}
}

// options are the flags of both ways to run.
type options struct {
	server, client bool
	serverOptions
	clientOptions
}

func command(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:           "garcon --server | --client ...",
		Short:         "The agent in a container",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.server {
				if len(args) > 0 {
					return fmt.Errorf("unexpected argument %q", args[0])
				}
				return o.serve(cmd.Context())
			}
			return o.ask(cmd.Context(), args, cmd.OutOrStdout())
		},
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	f := cmd.Flags()
	f.BoolVar(&o.server, "server", false, "run as the agent")
	f.BoolVar(&o.client, "client", false, "ask the host for something")
	cmd.MarkFlagsOneRequired("server", "client")
	cmd.MarkFlagsMutuallyExclusive("server", "client")
	o.serverOptions.add(f)
	o.clientOptions.add(f)
	return cmd
}
