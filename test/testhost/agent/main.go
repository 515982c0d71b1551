// Command agent is what of ours runs in the test host: it takes the machine
// from the initramfs to its disk, hands it to systemd, and later runs commands
// there for the program that started the machine. The disk is Debian's alone:
// the agent lives in /run.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guest/core"
)

const (
	newRoot   = "/newroot"
	keep      = "/agent"        // what of the initramfs stays
	runtime   = "/run/testhost" // ours in the running system
	program   = runtime + "/bin/agent"
	disk      = "/dev/vda"
	sessions  = runtime + "/sessions"
	unitsDir  = "/run/systemd/system"
	agentUnit = "testhost-agent.service"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("testhost: ")
	if os.Getpid() == 1 {
		log.Fatalf("cannot start: %v", boot())
	}
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		err = servePort()
	case len(os.Args) == 3 && os.Args[1] == "session":
		err = serveSession(os.Args[2])
	default:
		err = fmt.Errorf("usage: agent serve|session SOCKET")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// boot becomes systemd; it returns only when it cannot.
func boot() error {
	for _, m := range core.EarlyMounts {
		if err := m.MakeAndMount(); err != nil {
			return err
		}
	}
	if err := core.LoadModules("/modules"); err != nil {
		return err
	}
	if err := core.MountRootDisk(disk, newRoot, true); err != nil {
		return err
	}
	run := core.MountPoint{Source: "tmpfs", Target: newRoot + "/run", Type: "tmpfs",
		Flags: unix.MS_NOSUID | unix.MS_NODEV, Options: "mode=0755"}
	if err := run.Mount(); err != nil {
		return err
	}
	if err := install(newRoot); err != nil {
		return err
	}
	if err := core.SwitchRoot(newRoot, keep); err != nil {
		return err
	}
	// systemd knows from this whether it runs in a container.
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"TERM=linux"})
}

// install puts the agent and its unit into the new root's /run.
func install(root string) error {
	if err := os.Mkdir(keep, 0o755); err != nil {
		return err
	}
	if err := os.Rename("/init", filepath.Join(keep, "agent")); err != nil {
		return err
	}
	bin := core.MountPoint{Source: keep, Target: filepath.Dir(root + program), Type: "none", Flags: unix.MS_BIND}
	if err := bin.MakeAndMount(); err != nil {
		return err
	}
	wants := filepath.Join(root+unitsDir, "sysinit.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root+unitsDir, agentUnit), []byte(unit), 0o644); err != nil {
		return err
	}
	return os.Symlink("../"+agentUnit, filepath.Join(wants, agentUnit))
}

// unit starts the agent early, and nothing stops it when the machine goes down
// but the end itself: one can watch.
const unit = `[Unit]
Description=Agent of the test host
DefaultDependencies=no
After=systemd-udevd.service local-fs.target

[Service]
ExecStart=` + program + ` serve
KillMode=process
OOMScoreAdjust=-1000
LimitNOFILE=524288
TasksMax=infinity
`
