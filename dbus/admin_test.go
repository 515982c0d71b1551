package dbus

import (
	"context"
	"testing"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
)

// Everybody's VMs and disks are shown to an administrator, one's own quota and
// the host's facts to everybody.
func TestAdministratorsMethods(t *testing.T) {
	bus := dbustest.System(t)
	serve(t, bus, &handler{
		getAllState: func(context.Context, policy.Subject) (State, error) {
			return State{Instance: "i", VMs: []map[string]any{{"name": "somebody's"}}}, nil
		},
		listDiskUsage: func(context.Context, policy.Subject) ([]map[string]any, error) {
			return []map[string]any{{"uid": uint32(7), "disk": uint64(8)}}, nil
		},
		getQuota: func(_ context.Context, s policy.Subject) (map[string]any, error) {
			return map[string]any{"uid": s.Owner.UID}, nil
		},
		getServiceInfo: func(context.Context, policy.Subject) (map[string]any, error) {
			return map[string]any{"vsock": "user"}, nil
		},
	}, Options{})
	root, other := bus.ConnectAs(t, dbustest.User{}), bus.ConnectAs(t, dbustest.Bin)
	for method, everybody := range map[string]bool{"GetAllState": false, "ListDiskUsage": false, "GetQuota": true, "GetServiceInfo": true} {
		if _, err := invoke(t, root, Concierge1Name, method); err != nil {
			t.Errorf("%s of an administrator: %v", method, err)
		}
		_, err := invoke(t, other, Concierge1Name, method)
		if everybody && err != nil {
			t.Errorf("%s: %v", method, err)
		}
		if !everybody && errorName(err) != "org.freedesktop.DBus.Error.AccessDenied" {
			t.Errorf("%s of an ordinary user: %v", method, err)
		}
	}
}
