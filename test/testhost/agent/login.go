package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

func unitOf(session string) string { return "testhost-session-" + session + ".service" }

// login opens a session through PAM, as getty and login do, with an agent as
// its shell. On a virtual terminal it is a session of seat0.
func login(l wire.Login) error {
	if l.Name == "" || strings.ContainsAny(l.Name, "/ ") {
		return fmt.Errorf("%q is no name for a session", l.Name)
	}
	u, err := user.Lookup(l.User)
	if err != nil {
		return err
	}
	dir := filepath.Join(sessions, l.Name)
	if err := errors.Join(os.MkdirAll(sessions, 0o711), os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	if err := os.Chown(dir, uid, -1); err != nil {
		return err
	}
	args := []string{"--quiet", "--collect", "--unit=" + unitOf(l.Name), "--uid=" + l.User,
		"--property=Type=notify", "--property=PAMName=login", "--property=WorkingDirectory=~",
		"--setenv=XDG_SESSION_CLASS=user", "--setenv=XDG_SESSION_TYPE=tty", "--property=KillMode=mixed", "--property=After=systemd-user-sessions.service"}
	if l.TTY != "" {
		args = append(args, "--property=TTYPath=/dev/"+l.TTY, "--property=StandardInput=tty",
			"--property=StandardOutput=journal", "--property=TTYReset=yes", "--property=TTYVHangup=yes")
	}
	err = run("systemd-run", append(args, program, "session", socketOf(l.Name))...)
	if err != nil {
		why, _ := exec.Command("journalctl", "--quiet", "--no-pager", "--lines=5", "--output=cat", "--unit="+unitOf(l.Name)).Output()
		return fmt.Errorf("%w\n%s", err, why)
	}
	return nil
}

// logout ends a session and everything in it.
func logout(l wire.Login) error {
	return run("systemctl", "stop", unitOf(l.Name))
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
