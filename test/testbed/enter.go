package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageEnv tells the stages of Enter apart.
const stageEnv = "AUBERGE_TESTBED_STAGE"

// A User is one of the users of a testbed.
type User struct {
	Name     string
	UID, GID uint32
}

// Users of every testbed that is entered as root. Alice and Bob are members of
// the group auberge.
var (
	Service = User{"auberge", 64041, 64041}    // runs vm_concierge
	VMs     = User{"auberge-vm", 64042, 64042} // runs virtual machines
	Alice   = User{"alice", 64101, 64101}      // ordinary people
	Bob     = User{"bob", 64102, 64102}
	// Carol and Dave are no members of the group auberge.
	Carol = User{"carol", 64103, 64103}
	Dave  = User{"dave", 64104, 64104}
	// Cicerone runs vm_cicerone; to vm_concierge it is Auberge's other daemon.
	Cicerone = User{"auberge-cicerone", 64043, 64043}
	Peer     = Cicerone
	Root     = User{"root", 0, 0}
)

// Enter must be the first thing that a program does. It returns in a process
// that has the private name spaces, and exits with that process's code in
// those that lead there. Without root it returns at once.
func Enter() error {
	if os.Geteuid() != 0 {
		return nil
	}
	switch os.Getenv(stageEnv) {
	case "":
		os.Exit(unshare())
	case "init":
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "testbed:", err)
			os.Exit(1)
		}
		os.Exit(initMain())
	}
	return os.Unsetenv(stageEnv)
}

// stage starts this program again with the same arguments.
func stage(name string, attr *syscall.SysProcAttr) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"="+name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	return cmd, cmd.Start()
}

// unshare runs the rest in new name spaces. The kernel ends everything in
// them with their first process.
func unshare() int {
	cmd, err := stage("init", &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL})
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed: new name spaces:", err)
		return 1
	}
	// What a terminal or a time limit sends reaches the program itself; here
	// it must only not end the wait.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM {
				cmd.Process.Kill()
			}
		}
	}()
	cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// settle makes the mounts private and puts our users in.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// A directory that every user can reach, wherever the repository lies.
	if err := os.MkdirAll(Base, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", Base, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", Base, err)
	}
	var passwd, group strings.Builder
	for _, u := range users() {
		// Each bed has homes of its own, where programs are sent by HOME.
		fmt.Fprintf(&passwd, "%s:x:%d:%d::/nonexistent:/bin/sh\n", u.Name, u.UID, u.GID)
		if u == Service {
			u.Name = "auberge-daemon" // as in packaging/sysusers
		}
		fmt.Fprintf(&group, "%s:x:%d:\n", u.Name, u.GID)
	}
	fmt.Fprintf(&group, "auberge:x:64100:%s,%s\n", Alice.Name, Bob.Name)
	if err := overlayFile("/etc/passwd", passwd.String()); err != nil {
		return err
	}
	return overlayFile("/etc/group", group.String())
}

// users are all that are put into the system's list.
func users() []User { return []User{Service, VMs, Cicerone, Alice, Bob, Carol, Dave} }

// Base is where testbeds live when entered as root: a file system in memory,
// seen by nobody else. Its name is short because socket addresses are.
const Base = "/run/auberge-testbed"

// overlayFile adds lines to a file of the system, for us alone.
func overlayFile(path, more string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	own := filepath.Join(Base, filepath.Base(path))
	if err := os.WriteFile(own, append(old, more...), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount our %s: %w", path, err)
	}
	return nil
}

// initMain is PID 1 of the name space: it runs the program proper and reaps
// what loses its parent.
func initMain() int {
	signal.Ignore(syscall.SIGINT)
	cmd, err := stage("program", nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 1
		}
		if pid == cmd.Process.Pid {
			if ws.Signaled() {
				return 128 + int(ws.Signal())
			}
			return ws.ExitStatus()
		}
	}
}
