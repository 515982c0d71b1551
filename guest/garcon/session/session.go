// Package session is the surroundings of the container's user: who that is and
// what the environment of programs started for them is.
package session

import (
	"fmt"
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

// between are variables between systemd and one of its services.
var between = []string{
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
	"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MANAGERPID", "MAINPID",
	"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY",
}

// Environ returns what a program inherits from the environment of the agent,
// with what the features ask for.
func Environ(environ []string, features []pb.ContainerFeature) []string {
	set := map[string]string{}
	for _, f := range features {
		switch f {
		case pb.ContainerFeature_ENABLE_GTK3_IME_SUPPORT:
			set["GTK_IM_MODULE"] = "cros"
		case pb.ContainerFeature_ENABLE_QT_IME_SUPPORT:
			set["QT_IM_MODULE"] = "cros"
		case pb.ContainerFeature_ENABLE_VIRTUAL_KEYBOARD_SUPPORT:
			set["CROS_IM_VIRTUAL_KEYBOARD"] = "1"
		}
	}
	var env []string
	for _, kv := range environ {
		name, _, ok := strings.Cut(kv, "=")
		if _, changed := set[name]; ok && !changed && !slices.Contains(between, name) {
			env = append(env, kv)
		}
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}
