package vmm

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// PrepareUnit makes what a supervisor needs that the service manager has
// started, and that otherwise a daemon hands to it: the control socket and the
// lifeline, in the directory that the unit got. The user peer may reach the
// sockets there. The directory becomes the working directory.
func PrepareUnit(dir string, peer uint32) (_ SupervisorConfig, err error) {
	cfg := SupervisorConfig{Dir: dir, PeerUID: peer}
	if !filepath.IsAbs(dir) {
		return cfg, fmt.Errorf("the unit's directory %q is no absolute path (RuntimeDirectory= must name one)", dir)
	}
	if err := os.Chdir(dir); err != nil {
		return cfg, fmt.Errorf("enter the unit's directory: %w", err)
	}
	if err := shareDir(dir, peer); err != nil {
		return cfg, err
	}
	if cfg.LifelineReader, cfg.Lifeline, err = makeLifeline(); err != nil {
		return cfg, err
	}
	// Bound by a short name: addresses end at 108 bytes.
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: controlSocket, Net: "unixpacket"})
	if err != nil {
		return cfg, fmt.Errorf("create the VM's control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	cfg.Control = l
	return cfg, nil
}

// unitDirVariable names the directory to a unit's processes.
const unitDirVariable = "RUNTIME_DIRECTORY"

// UnitDir is the directory that the service manager has made for this
// process's unit.
func UnitDir() (string, error) {
	dir, ok := syscall.Getenv(unitDirVariable)
	if !ok {
		return "", fmt.Errorf("%s is not set: this is started by the service manager only, as auberge-vm@.service", unitDirVariable)
	}
	return dir, nil
}
