package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/test/testbed"
)

// The example clients, which `make examples` got ready, do what they say: in
// other languages, by the .proto files that are installed.
func TestExamples(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	examples := filepath.Join(b.Bin, "examples")
	for _, example := range []struct {
		name    string
		command []string
	}{
		{"python", []string{"/usr/bin/python3", filepath.Join(examples, "python/vms.py")}},
		{"javascript", []string{"node", filepath.Join(examples, "javascript/vms.js")}},
	} {
		t.Run(example.name, func(t *testing.T) {
			alice := b.client(testbed.Alice)
			alice.small(example.name)
			run := func(vm string) (lines []string, errs string, err error) {
				cmd := b.Command(testbed.Alice, example.command[0], append(example.command[1:], vm)...)
				cmd.Env = append(cmd.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+b.Address, "AUBERGE_PROTO="+filepath.Join(examples, "proto"))
				out, errs, err := output(cmd)
				return strings.Split(strings.TrimSpace(out), "\n"), errs, err
			}
			lines, errs, err := run(example.name)
			if err != nil {
				t.Fatalf("%v: %s\n%s", err, strings.Join(lines, "\n"), errs)
			}
			var signals []string
			for _, l := range lines {
				if s, ok := strings.CutPrefix(l, "signal "); ok {
					signals = append(signals, s)
				}
			}
			want := []string{"VmStartingUpSignal: ", "VmStartedSignal: ", "VmStoppingSignal: ", "VmStoppedSignal: "}
			for i := range want {
				want[i] += example.name
			}
			if !slices.Equal(signals, want) {
				t.Errorf("signals: %q", signals)
			}
			if !slices.Contains(lines, "listed: "+example.name) {
				t.Errorf("not listed: %q", lines)
			}
			// What the service refuses reaches the user.
			if lines, errs, err := run("a/b"); err == nil || !strings.Contains(errs, "a/b") {
				t.Errorf("a name with a slash: %v, %q, %q", err, lines, errs)
			}
		})
	}
	b.gone()
}
