package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// An ExitReason says why a VM ended.
type ExitReason string

const (
	ExitGuest      ExitReason = "guest"      // the guest powered off or rebooted
	ExitStopped    ExitReason = "stopped"    // the supervisor was asked to stop it
	ExitCrashed    ExitReason = "crashed"    // the hypervisor failed or was killed
	ExitBackend    ExitReason = "backend"    // a helper process died, the VM was ended
	ExitSupervisor ExitReason = "supervisor" // the supervisor vanished without a record
)

// An Exit is the record a supervisor leaves when its VM has ended.
type Exit struct {
	Reason ExitReason `json:"reason"`
	// Message says it for people.
	Message string    `json:"message"`
	Time    time.Time `json:"time"`
	// Console is the tail of the guest's console, as the guest wrote it.
	Console []byte `json:"console,omitempty"`
}

// writeExit leaves the record in an open file, or else in a VM's directory.
func writeExit(record *os.File, dir string, e Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if record != nil {
		_, err = record.Write(b)
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, exitFile), b, 0o640, renameio.WithTempDir(dir))
}

// maxExit bounds an exit record, in bytes; that of a real supervisor is little
// more than the console in base64.
const maxExit = 1 << 20

// ReadExit returns the exit record in a VM's directory. The error is
// fs.ErrNotExist when the VM left none. The directory is the VMs' user's too:
// what is no plain file of a plausible size is no record.
func ReadExit(dir string) (Exit, error) {
	f, err := os.OpenFile(filepath.Join(dir, exitFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Exit{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > maxExit) {
		err = errors.New("it is no plain file of a plausible size")
	}
	if err != nil {
		return Exit{}, fmt.Errorf("exit record in %s: %w", dir, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxExit))
	if err != nil {
		return Exit{}, err
	}
	if len(b) == 0 {
		// It was handed to a supervisor that never wrote to it.
		return Exit{}, fmt.Errorf("exit record in %s is empty: %w", dir, fs.ErrNotExist)
	}
	var e Exit
	if err := json.Unmarshal(b, &e); err != nil {
		return Exit{}, fmt.Errorf("exit record in %s: %w", dir, err)
	}
	return e, nil
}
