// Package arch holds the rules of the house: which package may know which.
package arch

import (
	"os/exec"
	"strings"
	"testing"
)

const (
	module = "github.com/auberge-vm/auberge/"
	godbus = "github.com/godbus/dbus/v5"
)

// packages returns each package of the module with all that it depends on.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Deps \" \"}}", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for l := range strings.Lines(string(out)) {
		f := strings.Fields(l)
		if name, ok := strings.CutPrefix(f[0], module); ok {
			all[name] = f[1:]
		}
	}
	return all
}

// beneath says whether a package is one of some trees of the module.
func beneath(pkg string, trees ...string) bool {
	for _, tree := range trees {
		if pkg == tree || strings.HasPrefix(pkg, tree+"/") {
			return true
		}
	}
	return false
}

func TestDependenciesPointOneWay(t *testing.T) {
	all := packages(t)
	if len(all) < 15 {
		t.Fatalf("only %d packages found", len(all))
	}
	for pkg, deps := range all {
		for _, dep := range deps {
			own, isOwn := strings.CutPrefix(dep, module)
			switch {
			case dep == godbus || strings.HasPrefix(dep, godbus+"/"):
				if !beneath(pkg, "dbus", "client", "daemon", "test", "guest/garcon", "guest/cmd/garcon") {
					t.Errorf("%s knows the bus", pkg)
				}
			case !isOwn:
			case beneath(pkg, "guest") && !beneath(own, "guest", "protos", "vsock"):
				t.Errorf("%s runs in guests and knows %s", pkg, own)
			// The test host's agent runs in a machine of its own too.
			case beneath(own, "guest") && !beneath(pkg, "guest", "test/testhost/agent"):
				t.Errorf("%s runs on the host and knows %s", pkg, own)
			case beneath(pkg, "policy", "vsock", "protos", "seqpacket") && !beneath(own, "policy", "vsock", "protos", "seqpacket"):
				t.Errorf("%s is at the bottom and knows %s", pkg, own)
			case beneath(pkg, "vmm") && !beneath(own, "vmm", "vsock", "seqpacket"):
				t.Errorf("%s runs VMs and knows %s", pkg, own)
			case beneath(pkg, "helper") && !beneath(own, "helper", "policy", "vsock", "seqpacket"):
				t.Errorf("%s runs with privileges and knows %s", pkg, own)
			case beneath(own, "helper") && !beneath(pkg, "helper", "daemon", "test"):
				t.Errorf("%s knows %s, which daemons put in", pkg, own)
			case beneath(pkg, "concierge", "cicerone", "guestlink") && beneath(own, "dbus", "daemon", "client"):
				t.Errorf("%s is a domain package and knows %s", pkg, own)
			case beneath(pkg, "cicerone") && beneath(own, "concierge", "vmm"), beneath(pkg, "concierge") && beneath(own, "cicerone"):
				t.Errorf("%s knows %s, which is the other daemon's", pkg, own)
			case beneath(pkg, "dbus") && beneath(own, "concierge", "cicerone", "vmm", "guestlink", "daemon", "client"):
				t.Errorf("%s is the bus and knows %s", pkg, own)
			case beneath(own, "daemon") && !beneath(pkg, "daemon"), beneath(own, "test") && !beneath(pkg, "test"):
				t.Errorf("%s knows %s, which nobody may", pkg, own)
			}
		}
	}
}
