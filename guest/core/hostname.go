package core

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// SetHostname names the machine: as the kernel parameter says, else as
// root/etc/hostname says, else "localhost".
func SetHostname(p Params, root string) error {
	name := p.Hostname
	if name == "" {
		name = readHostname(root + "/etc/hostname")
	}
	if name == "" {
		name = "localhost"
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("cannot set the hostname to %q: %w", name, err)
	}
	return nil
}

// readHostname follows hostname(5): the first line that is not a comment.
func readHostname(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}
