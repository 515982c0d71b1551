package maitred

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	"golang.org/x/sys/unix"
)

// rootDiskTime is how long the root disk may take to appear. It is there as
// soon as its driver is; the rest is for slow machines.
const rootDiskTime = 10 * time.Second

// Places in the initramfs.
const (
	newRoot     = "/newroot"
	lowerRoot   = "/lower"
	upperRoot   = "/upper"
	modulesDir  = "/modules"
	initBinary  = "/init"
	shellBinary = "/vshd"
	agentsDir   = "/agents" // what of the initramfs stays
)

// runStageOne takes the machine from the initramfs to its root disk, and
// becomes stage two. It returns only when it cannot.
func runStageOne() error {
	for _, m := range core.EarlyMounts {
		if err := m.MakeAndMount(); err != nil {
			return err
		}
	}
	attachConsole()
	log := core.NewLogger("maitred")
	params, err := core.ReadParams()
	if err != nil {
		return err
	}
	if err := core.LoadModules(modulesDir); err != nil {
		log.Error("some modules were not loaded, this kernel may have them built in", "err", err)
	}
	log.Info("modules loaded")
	if err := mountRoot(params); err != nil {
		return err
	}
	log.Info("root mounted", "device", params.RootDevice, "writable", params.WritableRoot)
	if err := installAgents(log, newRoot); err != nil {
		return err
	}
	if err := core.SwitchRoot(newRoot, agentsDir); err != nil {
		return err
	}
	self := filepath.Join(core.AgentDir, "maitred")
	env := []string{"PATH=" + core.DefaultPath, "HOME=/root", "TERM=linux"}
	return fmt.Errorf("cannot execute %s: %w", self, unix.Exec(self, []string{stageTwo}, env))
}

// attachConsole makes the console the standard input and output, where the
// kernel could not because its initramfs had no such device.
func attachConsole() {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	for std := range 3 {
		if fd != std {
			unix.Dup3(fd, std, 0)
		}
	}
	if fd > 2 {
		unix.Close(fd)
	}
}

// mountRoot puts the root disk at newRoot, beneath an overlay unless it is to
// be written to.
func mountRoot(params core.Params) error {
	ctx, cancel := context.WithTimeout(context.Background(), rootDiskTime)
	defer cancel()
	if err := core.WaitDevice(ctx, params.RootDevice); err != nil {
		return err
	}
	if params.WritableRoot {
		return core.MountRootDisk(params.RootDevice, newRoot, true)
	}
	if err := core.MountRootDisk(params.RootDevice, lowerRoot, false); err != nil {
		return err
	}
	if err := core.OverlayRoot(lowerRoot, upperRoot, newRoot); err != nil {
		return err
	}
	// The overlay holds both by itself; nobody shall find them mounted.
	return errors.Join(unix.Unmount(lowerRoot, unix.MNT_DETACH), unix.Unmount(upperRoot, unix.MNT_DETACH))
}

// installAgents gives the new root its /run, with the agents in it and the
// commands that one of them is. The agents stay where they are in memory: a
// copy costs an emulated guest more than a second, because the emulator then
// has to translate the program a second time.
func installAgents(log *slog.Logger, root string) error {
	run := core.MountPoint{
		Source: "tmpfs", Target: root + "/run", Type: "tmpfs",
		Flags: unix.MS_NOSUID | unix.MS_NODEV, Options: "mode=0755",
	}
	if err := run.MakeAndMount(); err != nil {
		return err
	}
	if err := os.Mkdir(agentsDir, 0o755); err != nil {
		return err
	}
	if err := os.Rename(initBinary, agentsDir+"/maitred"); err != nil {
		return err
	}
	if err := os.Rename(shellBinary, agentsDir+"/vshd"); err != nil {
		log.Error("there will be no remote shells", "err", err)
	}
	for _, name := range commandNames {
		if err := os.Symlink("maitred", filepath.Join(agentsDir, name)); err != nil {
			return err
		}
	}
	bin := core.MountPoint{Source: agentsDir, Target: root + core.AgentDir, Type: "none", Flags: unix.MS_BIND}
	return bin.MakeAndMount()
}
