package vmc

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
)

func (f *fake) GetAllState(context.Context, policy.Subject) (dbus.State, error) { return f.state, nil }

func (f *fake) ListDiskUsage(context.Context, policy.Subject) ([]map[string]any, error) {
	return f.usages, nil
}

// Users of a directory are no users that were removed, and where nobody can
// tell, nobody says so.
func TestUsersOfADirectory(t *testing.T) {
	bin := t.TempDir()
	const getent = `#!/bin/sh
case "$*" in
"passwd 4000000001") echo "carol:*:4000000001:5:Carol:/home/carol:/bin/sh" ;;
"passwd 4000000002") exit 2 ;;
*) exit 3 ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "getent"), []byte(getent), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	f := &fake{}
	for _, uid := range []uint32{0, 4000000001, 4000000002, 4000000003} {
		f.usages = append(f.usages, map[string]any{"uid": uid, "images": uint32(1)})
		f.state.VMs = append(f.state.VMs, map[string]any{"uid": uid, "name": "x", "owner_id": "x", "status": "running"})
	}
	bus := dbustest.Lax(t)
	f.serve(t, bus, dbus.Options{})
	for _, args := range [][]string{{"disk", "usage", "--all-users"}, {"list", "--all-users"}} {
		out, errs, code := vmc(t, "", append(args, "--bus", bus.Address)...)
		if code != 0 {
			t.Fatalf("%d, %s", code, errs)
		}
		for _, want := range []string{"0 root", "4000000001 carol", "4000000002 (no such user)", "4000000003 (unknown)"} {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
				t.Errorf("%v does not say %q:\n%s", args, want, out)
			}
		}
	}
}
