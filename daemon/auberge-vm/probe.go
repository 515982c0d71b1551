package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// probeCommand lets a daemon probe the accelerator as the user under which
// VMs run, whose rights are what counts.
func probeCommand(p *programs) *cobra.Command {
	return &cobra.Command{
		Use:   "probe KERNEL",
		Short: "Find out whether KVM runs guests; print kvm or tcg, and why",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.qemu.Probe(context.Background(), args[0]); err != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "tcg\n%v\n", err)
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(), "kvm")
			return nil
		},
	}
}
