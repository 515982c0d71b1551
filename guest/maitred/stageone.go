package maitred

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	if err := core.SwitchRoot(newRoot); err != nil {
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

// installAgents saves the agents from the initramfs into /run of the new root,
// with the commands that one of them is.
func installAgents(log *slog.Logger, root string) error {
	run := core.MountPoint{
		Source: "tmpfs", Target: root + "/run", Type: "tmpfs",
		Flags: unix.MS_NOSUID | unix.MS_NODEV, Options: "mode=0755",
	}
	if err := run.MakeAndMount(); err != nil {
		return err
	}
	dir := root + core.AgentDir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := copyProgram(initBinary, dir+"/maitred"); err != nil {
		return err
	}
	if err := copyProgram(shellBinary, dir+"/vshd"); err != nil {
		log.Error("there will be no remote shells", "err", err)
	}
	for _, name := range commandNames {
		if err := os.Symlink("maitred", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
