// Package session is the surroundings of the container's user: who that is and
// what the environment of programs started for them is.
package session

import (
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// UID is the container's user's.
const UID = 1000

// A User is the one in whose session we are.
type User struct {
	Name string
	Home string
}

// Current finds the user of this process. Without any, only the container's
// user will do.
func Current(any bool) (User, error) {
	uid := os.Geteuid()
	if uid != UID && !any {
		return User{}, fmt.Errorf("run by uid %d, but this is the agent of the container's user, uid %d, in whose session systemd starts it; "+
			"--allow_any_user lets others run it", uid, UID)
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return User{}, fmt.Errorf("find out who uid %d is: %w", uid, err)
	}
	if !filepath.IsAbs(u.HomeDir) {
		return User{}, fmt.Errorf("user %s has no home directory but %q", u.Username, u.HomeDir)
	}
	return User{u.Username, filepath.Clean(u.HomeDir)}, nil
}

// ours are variables of the agent itself: between systemd and its service, and
// of the one start of a program.
var ours = []string{
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
	"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MANAGERPID", "MAINPID",
	"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY",
	"DESKTOP_STARTUP_ID",
}

// Environ returns what a program inherits from the environment of the agent,
// with what the features ask for, and then with what is set.
func Environ(environ []string, features []pb.ContainerFeature, set map[string]string) []string {
	all := map[string]string{}
	for _, f := range features {
		switch f {
		case pb.ContainerFeature_ENABLE_GTK3_IME_SUPPORT:
			all["GTK_IM_MODULE"] = "cros"
		case pb.ContainerFeature_ENABLE_QT_IME_SUPPORT:
			all["QT_IM_MODULE"] = "cros"
		case pb.ContainerFeature_ENABLE_VIRTUAL_KEYBOARD_SUPPORT:
			all["CROS_IM_VIRTUAL_KEYBOARD"] = "1"
		}
	}
	maps.Copy(all, set)
	var env []string
	for _, kv := range environ {
		name, _, ok := strings.Cut(kv, "=")
		if _, changed := all[name]; ok && !changed && !slices.Contains(ours, name) {
			env = append(env, kv)
		}
	}
	for name, value := range all {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}

// Getenv reads a variable of an environment, "" where it is not set.
func Getenv(environ []string, name string) string {
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}
