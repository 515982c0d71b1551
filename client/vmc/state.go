package vmc

import (
	"context"
	"fmt"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
)

type dict = map[string]godbus.Variant

func (a *app) stateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "state",
		Short: "Show all VMs and operations that you may see, in one piece",
		Long: "Show VMs and operations as they were at one moment. The sequence number is that of the\n" +
			"last change in them: a signal of \"vmc monitor\" with a higher one came later.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			var instance string
			var sequence uint64
			var vms, operations []dict
			if err := s.plain(ctx, "GetState", nil, &instance, &sequence, &vms, &operations); err != nil {
				return err
			}
			if a.json {
				return a.printValue(map[string]any{"instance": instance, "sequence": sequence,
					"vms": plainValue(vms), "operations": plainValue(operations)})
			}
			fmt.Fprintf(a.out, "Instance %s, sequence number %d\n\n", printable(instance), sequence)
			if err := a.printDicts("No VMs.", vms); err != nil {
				return err
			}
			fmt.Fprintln(a.out)
			return a.printDicts("No operations.", operations)
		}),
	}
}

func (a *app) operationsCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "operations",
		Short:             "List long work that goes on, such as resizing a disk",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			var operations []dict
			if err := s.plain(ctx, "ListOperations", nil, &operations); err != nil {
				return err
			}
			if a.json {
				return a.printValue(map[string]any{"operations": plainValue(operations)})
			}
			return a.printDicts("No operations.", operations)
		}),
	}
}

// printDicts prints dictionaries as a table with all the keys that there are.
func (a *app) printDicts(none string, list []dict) error {
	if len(list) == 0 {
		fmt.Fprintln(a.out, none)
		return nil
	}
	all := dict{}
	for _, d := range list {
		for key := range d {
			all[key] = godbus.Variant{}
		}
	}
	keys := sortedKeys(all)
	heads := make([]string, len(keys))
	for i, key := range keys {
		heads[i] = printable(strings.ToUpper(strings.ReplaceAll(key, "_", " ")))
	}
	t := a.table(heads...)
	for _, d := range list {
		cells := make([]any, len(keys))
		for i, key := range keys {
			cells[i] = "-"
			if v, ok := d[key]; ok {
				cells[i] = plainValue(v)
			}
		}
		t.row(cells...)
	}
	return t.end()
}
