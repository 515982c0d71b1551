package vmm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
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

func writeExit(dir string, e Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, exitFile), b, 0o640)
}

// ReadExit returns the exit record in a VM's directory. The error is
// fs.ErrNotExist when the VM left none.
func ReadExit(dir string) (Exit, error) {
	b, err := os.ReadFile(filepath.Join(dir, exitFile))
	if err != nil {
		return Exit{}, err
	}
	var e Exit
	if err := json.Unmarshal(b, &e); err != nil {
		return Exit{}, fmt.Errorf("exit record in %s: %w", dir, err)
	}
	return e, nil
}
