package maitred

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	"golang.org/x/sys/unix"
)

const (
	// toolsDir is where the tools disk is mounted, here and in containers.
	toolsDir = "/opt/google/cros-containers"
	// toolsSerial is the host's name for the tools disk.
	toolsSerial = "tools"
	// incusDir is where Incus keeps everything.
	incusDir = statefulDir + "/incus"
	// lxcfsDir is where Incus looks for lxcfs.
	lxcfsDir = "/var/lib/lxcfs"
	// containersGrace is how long the containers' manager may take to begin with
	// their end, as on ChromeOS.
	containersGrace = 2 * time.Second
	// tremplin is the name of the containers' manager.
	tremplin = "tremplin"
)

// containerModules are drivers that nothing would load: no device node of
// theirs is there to be opened before they are.
var containerModules = []string{"fuse", "tun"}

// startContainers starts what runs containers, when the VM has it and it does
// not run yet. A VM is of use without containers, so what fails here is told to
// whoever reads the log, and to the host by a manager that never gets ready.
func (s *Server) startContainers(ctx context.Context, settings []string) {
	if s.containers {
		return
	}
	started, err := s.tryContainers(ctx, settings)
	if err != nil {
		s.log.Error("there will be no containers", "err", err)
	}
	s.containers = started
}

func (s *Server) tryContainers(ctx context.Context, settings []string) (started bool, err error) {
	if err := s.mountTools(); err != nil {
		return false, err
	}
	program := s.toolsDir + "/bin/" + tremplin
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		return false, nil // an image without containers
	}
	env := append([]string{"PATH=" + core.DefaultPath, "HOME=/root", "LC_ALL=C.UTF-8", "INCUS_DIR=" + incusDir}, settings...)
	s.prepareContainers(ctx, env)
	var args []string
	if s.reservedVsock {
		args = append(args, "--reserved-only")
	}
	if err := s.service(tremplin, program, args, env); err != nil {
		return false, fmt.Errorf("the containers' manager: %w", err)
	}
	return true, nil
}

// startLxcfs loads what containers need of the kernel, and starts what shows them
// the part of the machine that is theirs.
func (s *Server) startLxcfs(ctx context.Context, env []string) {
	for _, m := range containerModules {
		// The caller's own kernel may have it built in.
		if err := s.table.Run(ctx, "modprobe", "--quiet", m); err != nil {
			s.log.Warn("containers may lack a driver", "module", m, "err", err)
		}
	}
	program, err := core.LookPath("lxcfs")
	if err == nil {
		err = s.service("lxcfs", program, []string{lxcfsDir}, env)
	}
	if err != nil {
		s.log.Warn("containers will see the VM's memory and processors as theirs", "err", err)
	}
}

// mountTools mounts the tools disk, if the host gave one.
func (s *Server) mountTools() error {
	device, err := s.findDisk(toolsSerial)
	if device == "" || err != nil {
		return err
	}
	mounted, same, err := core.MountedFrom(s.toolsDir, device)
	if err != nil || same {
		return err
	}
	if mounted {
		return fmt.Errorf("another disk than %s is mounted at %s", device, s.toolsDir)
	}
	return core.MountPoint{Source: device, Target: s.toolsDir, Type: "squashfs",
		Flags: unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID}.MakeAndMount()
}

func (s *Server) service(name, program string, args, env []string) error {
	return s.services.Start(name, core.Command{
		Path:   program,
		Args:   append([]string{filepath.Base(program)}, args...),
		Env:    env,
		Output: os.Stderr,
	})
}

// endContainers lets the containers' manager begin to end them, before
// everything is told to end. Nothing is started again by now.
func (s *Server) endContainers() {
	s.services.End(tremplin, unix.SIGPWR, containersGrace)
}
