package vmc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/client/doctor"
	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Find out what keeps VMs from running here, and how to mend it",
		Long: "Look at the service, your rights, KVM, QEMU, the guest image, vsock, the helper, networks,\n" +
			"containers and space, and say of each whether it is ok, could be better (warn) or is broken\n" +
			"(fail), and what to do. Nothing is changed. The exit code is 1 when something is broken.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			h := thisHost()
			if s, err := a.connect(ctx); err != nil {
				h.BusError = err
			} else {
				defer s.close()
				h.Bus = busOfDoctor{s}
			}
			return a.printFindings(doctor.Examine(ctx, h))
		},
	}
}

func (a *app) printFindings(all []doctor.Finding) error {
	broken := doctor.Broken(all)
	if a.json {
		if err := a.printValue(map[string]any{"ok": !broken, "checks": all}); err != nil {
			return err
		}
	} else {
		t := a.table()
		for _, f := range all {
			t.row(strings.ToUpper(string(f.Outcome)), f.Name, f.Detail)
			if f.Remedy != "" && f.Outcome != doctor.OK {
				t.row("", "", "-> "+f.Remedy)
			}
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	if broken {
		return silentExit(ExitFailed)
	}
	return nil
}

// thisHost is the machine and who asks.
func thisHost() *doctor.Host {
	h := &doctor.Host{Root: "/", UID: os.Getuid(), User: fmt.Sprint(os.Getuid()),
		Run: func(ctx context.Context, program string, args ...string) (string, error) {
			out, err := exec.CommandContext(ctx, program, args...).Output()
			return string(out), err
		},
		Free: func(path string) (uint64, error) {
			var st unix.Statfs_t
			if err := unix.Statfs(path, &st); err != nil {
				return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
			}
			return st.Bavail * uint64(st.Bsize), nil
		},
	}
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	gids, _ := os.Getgroups()
	for _, gid := range gids {
		if g, err := user.LookupGroupId(fmt.Sprint(gid)); err == nil {
			h.Groups = append(h.Groups, g.Name)
		}
	}
	return h
}

// busOfDoctor asks by a session.
type busOfDoctor struct{ *session }

func (b busOfDoctor) Known(ctx context.Context, name string) (owned, activatable bool, err error) {
	driver := b.conn.BusObject()
	if err := driver.CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&owned); err != nil {
		return false, false, err
	}
	var names []string
	if err := driver.CallWithContext(ctx, "org.freedesktop.DBus.ListActivatableNames", 0).Store(&names); err != nil {
		return owned, false, err
	}
	return owned, slices.Contains(names, name), nil
}

func (b busOfDoctor) Info(ctx context.Context) (map[string]any, error) { return infoOf(ctx, b.session) }

func (b busOfDoctor) Cicerone(ctx context.Context) (map[string]any, error) {
	return infoOf(ctx, b.with(cicerone()))
}

func infoOf(ctx context.Context, s *session) (map[string]any, error) {
	var d dict
	if err := s.plain(ctx, "GetServiceInfo", nil, &d); err != nil {
		return nil, err
	}
	out := map[string]any{}
	for k, v := range d {
		out[k] = v.Value()
	}
	return out, nil
}

func (b busOfDoctor) MayUse(ctx context.Context) error {
	var q dict
	// Nobody is asked for a password to find out.
	err := b.conn.Object(b.table.BusName, godbus.ObjectPath(b.table.Path)).CallWithContext(ctx, dbus.Concierge1Name+".GetQuota", 0).Store(&q)
	var e godbus.Error
	if errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.AccessDenied" {
		return fmt.Errorf("%w: %s", doctor.ErrDenied, e.Error())
	}
	return err
}

func (b busOfDoctor) LaunchAllowed(ctx context.Context) (bool, string, error) {
	var resp pb.GetVmLaunchAllowedResponse
	if err := b.call(ctx, "GetVmLaunchAllowed", &pb.GetVmLaunchAllowedRequest{}, &resp); err != nil {
		return false, "", err
	}
	return resp.Allowed, resp.Reason, nil
}
