package policy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Credential is the user as which a process runs.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// ErrUnprivileged says that this process cannot act as another user.
var ErrUnprivileged = errors.New("this service runs without CAP_SETUID, CAP_SETGID and CAP_KILL and serves its own user only")

// CanSwitch says whether this process can start others as any user, and end
// them again.
func CanSwitch() bool {
	if os.Geteuid() == 0 {
		return true
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL
	return data[0].Effective&need == need
}

// StartAs starts a command as the given user, with no capability and no way
// to gain one; only uid 0 keeps those that this process has. Asked for the process's own user without the capabilities to
// switch, it keeps the groups as they are.
func StartAs(cmd *exec.Cmd, cred Credential) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	switch {
	case CanSwitch():
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: cred.UID, Gid: cred.GID, Groups: cred.Groups}
	case cred.UID != uint32(os.Geteuid()):
		return fmt.Errorf("act as uid %d: %w", cred.UID, ErrUnprivileged)
	}
	done := make(chan error, 1)
	go func() {
		// The child inherits what this thread has. Ambient capabilities would
		// outlive the change of user, so the thread gives them up and, never
		// unlocked, ends with the goroutine.
		runtime.LockOSThread()
		if err := dropInheritable(); err != nil {
			done <- fmt.Errorf("give up ambient capabilities: %w", err)
			return
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- fmt.Errorf("set no_new_privs: %w", err)
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// dropInheritable takes from this thread what it could hand on to another
// program: no capability is ambient that is not inheritable (capabilities(7)).
func dropInheritable() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return unix.Capset(&hdr, &data[0])
}
