package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/auberge-vm/auberge/test/testbed"
)

// What vmc does without a VM, as scripts that read like a person's session
// with the real service. In them "alice vmc list" is vmc run by alice, and
// "alice =3 vmc info x" has to end with the exit code 3.
func TestVmcScripts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/vmc",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		WorkdirRoot:         b.Home(testbed.Alice),
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", b.Bin+":"+os.Getenv("PATH"))
			env.Setenv("DBUS_SYSTEM_BUS_ADDRESS", b.Address)
			env.Setenv("LANG", "C.UTF-8")
			env.Setenv("DISKS", filepath.Join(b.StateDir, "disks"))
			env.Setenv("UID", strconv.Itoa(int(testbed.Alice.UID)))
			return os.Chown(env.WorkDir, int(testbed.Alice.UID), int(testbed.Alice.GID))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"alice": scriptUser(testbed.Alice),
			"bob":   scriptUser(testbed.Bob),
			"root":  scriptUser(testbed.Root),
		},
	})
	b.gone()
}

// scriptUser is the command of a script that runs a program as a user.
func scriptUser(u testbed.User) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		want := 0
		if code, ok := strings.CutPrefix(args[0], "="); ok {
			n, err := strconv.Atoi(code)
			ts.Check(err)
			want, args = n, args[1:]
		}
		if neg {
			ts.Fatalf("say which exit code is meant: =CODE")
		}
		id := strconv.Itoa(int(u.UID))
		err := ts.Exec("setpriv", append([]string{"--reuid", id, "--regid", strconv.Itoa(int(u.GID)), "--clear-groups", "--"}, args...)...)
		if got := exitCode(err); got != want {
			ts.Fatalf("%s %s: exit code %d, want %d", u.Name, strings.Join(args, " "), got, want)
		}
	}
}
