package vmc

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) quotaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "quota",
		Short: "Show what you have and may have",
		Long: "Show how many VMs of yours run, their memory, the size of your disks and logs, and how\n" +
			"much of each you may have. A disk counts as large as its guest sees it, or as what it takes\n" +
			"on the host's disk where that is more. An administrator sets the limits.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			q, err := getQuota(ctx, s)
			if err != nil {
				return err
			}
			if a.json {
				return a.printValue(plainValue(q))
			}
			t := a.table("WHAT", "USED", "LIMIT")
			t.row("running VMs", field(q, "vms"), limitField(q, "max_vms", false))
			t.row("their memory", bytesField(q, "memory"), limitField(q, "max_memory", true))
			t.row("disks", bytesField(q, "disk"), limitField(q, "max_disk", true))
			t.row("logs", bytesField(q, "logs"), limitField(q, "max_logs", true))
			return t.end()
		}),
	}
}

func getQuota(ctx context.Context, s *session) (dict, error) {
	var q dict
	err := s.plain(ctx, "GetQuota", nil, &q)
	return q, err
}

func (a *app) diskCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "disk",
		Short:             "Look at the disks of VMs",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.diskUsageCommand())
	return cmd
}

func (a *app) diskUsageCommand() *cobra.Command {
	var everybody bool
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Show how much space disks and logs take",
		Long: "Show how large the disks of your VMs are for their guests, what they take of the host's disk,\n" +
			"and how large the logs are. With --all-users everybody's, also what users have left who are\n" +
			"not there any more; that needs the administrator's right.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			var users []dict
			if everybody {
				if err := s.plain(ctx, "ListDiskUsage", nil, &users); err != nil {
					return err
				}
			} else {
				q, err := getQuota(ctx, s)
				if err != nil {
					return err
				}
				users = []dict{q}
			}
			if a.json {
				return a.printValue(map[string]any{"users": plainValue(users)})
			}
			t := a.table("UID", "USER", "DISKS", "SIZE", "ON DISK", "LIMIT", "LOGS")
			for _, u := range users {
				name := field(u, "user")
				if name == "-" {
					name = userName(ctx, field(u, "uid"))
				}
				t.row(field(u, "uid"), name, field(u, "images"), bytesField(u, "virtual"), bytesField(u, "allocated"),
					limitField(u, "max_disk", true), bytesField(u, "logs"))
			}
			return t.end()
		}),
	}
	cmd.Flags().BoolVar(&everybody, "all-users", false, "everybody's, for an administrator")
	return cmd
}

// listEverybody shows the VMs of all users.
func (a *app) listEverybody(ctx context.Context, s *session) error {
	var instance string
	var sequence uint64
	var vms, operations []dict
	if err := s.plain(ctx, "GetAllState", nil, &instance, &sequence, &vms, &operations); err != nil {
		return err
	}
	if a.json {
		return a.printValue(map[string]any{"instance": instance, "sequence": sequence,
			"vms": plainValue(vms), "operations": plainValue(operations)})
	}
	names := map[string]string{}
	t := a.table("UID", "USER", "NAME", "OWNER", "STATUS", "ADDRESS", "CPUS", "MEMORY", "PID", "CID", "SINCE")
	for _, v := range vms {
		memory, _ := v["memory"].Value().(uint64)
		uid := field(v, "uid")
		if _, ok := names[uid]; !ok {
			names[uid] = userName(ctx, uid)
		}
		t.row(uid, names[uid], field(v, "name"), field(v, "owner_id"), field(v, "status"), field(v, "address"), field(v, "cpus"),
			bytesWord(memory), field(v, "pid"), field(v, "cid"), moment(v, "started"))
	}
	return t.end()
}

func bytesField(d dict, key string) string {
	n, ok := d[key].Value().(uint64)
	if !ok {
		return "-"
	}
	return bytesWord(n)
}

func limitField(d dict, key string, bytes bool) string {
	n, ok := d[key].Value().(uint64)
	switch {
	case !ok:
		return "unlimited"
	case bytes:
		return bytesWord(n)
	}
	return fmt.Sprint(n)
}

// userName is the name that belongs to a uid. getent knows the accounts that
// are not in this machine's own files, which a program without C cannot ask
// for: who lists users to find what removed ones have left must not take those
// for removed.
func userName(ctx context.Context, uid string) string {
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	const notFound = 2 // getent(1)
	out, err := exec.CommandContext(ctx, "getent", "passwd", uid).Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		name, _, _ := strings.Cut(string(out), ":")
		return printable(name)
	case errors.As(err, &exit) && exit.ExitCode() == notFound:
		return "(no such user)"
	}
	return "(unknown)"
}
