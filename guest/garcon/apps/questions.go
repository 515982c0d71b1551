package apps

import (
	"fmt"
	"strings"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
	"github.com/auberge-vm/auberge/guest/garcon/mime"
)

// DesktopFile returns the file of the application with an id.
func (m *Manager) DesktopFile(id string) (string, error) {
	e, err := desktop.Find(m.paths.applications(), id)
	if err != nil {
		return "", err
	}
	return e.Path, nil
}

// Types are the MIME types of files by their extensions, as they are now.
func (m *Manager) Types() map[string]string {
	types, err := mime.Load(m.paths.DataDirs)
	if err != nil {
		m.log.Warn("a cache of MIME types is left out", "err", err)
	}
	return types
}

// Describe gives a few lines for whoever looks for a fault.
func (m *Manager) Describe() string {
	m.toldMu.Lock()
	told := m.told
	m.toldMu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "applications told to the host: %d\n", told.apps)
	fmt.Fprintf(&b, "extensions with a MIME type told to the host: %d\n", told.mime)
	fmt.Fprintf(&b, "programs started and running: %d\n", m.children.count())
	fmt.Fprintf(&b, "directories of applications: %s\n", strings.Join(m.paths.applications(), " "))
	return b.String()
}
