package vmc

import (
	"context"
	"fmt"
	"math"
	"time"

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
			if err := a.printVMs(vms); err != nil {
				return err
			}
			fmt.Fprintln(a.out)
			return a.printOperations(operations)
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
			return a.printOperations(operations)
		}),
	}
}

// printVMs prints the dictionaries of VMs.
func (a *app) printVMs(vms []dict) error {
	if len(vms) == 0 {
		fmt.Fprintln(a.out, "No VMs.")
		return nil
	}
	t := a.table("NAME", "OWNER", "STATUS", "ADDRESS", "CPUS", "MEMORY", "PID", "CID", "SINCE")
	for _, v := range vms {
		memory, _ := v["memory"].Value().(uint64)
		t.row(field(v, "name"), field(v, "owner_id"), field(v, "status"), field(v, "address"), field(v, "cpus"),
			bytesWord(memory), field(v, "pid"), field(v, "cid"), moment(v, "started"))
	}
	return t.end()
}

// printOperations prints the dictionaries of operations.
func (a *app) printOperations(operations []dict) error {
	if len(operations) == 0 {
		fmt.Fprintln(a.out, "No operations.")
		return nil
	}
	t := a.table("ID", "KIND", "NAME", "OWNER", "STATUS", "PROGRESS", "SINCE", "REASON")
	for _, o := range operations {
		status := field(o, "status")
		if phase, ok := o["phase"]; ok {
			status += " (" + fmt.Sprint(phase.Value()) + ")"
		}
		t.row(field(o, "id"), field(o, "kind"), field(o, "name"), field(o, "owner_id"), status,
			field(o, "progress")+" %", moment(o, "started"), field(o, "reason"))
	}
	return t.end()
}

// field is a value of a dictionary as a word.
func field(d dict, key string) string {
	v, ok := d[key]
	if !ok {
		return "-"
	}
	return fmt.Sprint(plainValue(v))
}

// moment is a time in microseconds since 1970 as people write it.
func moment(d dict, key string) string {
	us, ok := d[key].Value().(uint64)
	if !ok || us > math.MaxInt64 {
		return "-"
	}
	return time.UnixMicro(int64(us)).Format(time.DateTime)
}

// stateWords says by the service's snapshot how each VM is, where ListVms has
// no word for it: suspended ones run for the contract.
func stateWords(ctx context.Context, s *session) map[vmKey]string {
	var instance string
	var sequence uint64
	var vms, operations []dict
	if err := s.plain(ctx, "GetState", nil, &instance, &sequence, &vms, &operations); err != nil {
		return nil // what the contract says will do
	}
	words := map[vmKey]string{}
	for _, v := range vms {
		words[vmKey{field(v, "owner_id"), field(v, "name")}] = field(v, "status")
	}
	return words
}

type vmKey struct{ owner, name string }
