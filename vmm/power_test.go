package vmm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// Listeners that come and go leave no more than a bounded number of names
// behind, and those that are there keep theirs.
func TestListenersAreBounded(t *testing.T) {
	m := launch(t, "")
	defer end(t, m)
	const kept = 30000
	name := filepath.Join(m.Dir, vsock.EndpointPath(vmm.VsockSocket, kept))
	l, err := m.Listen(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for port := range uint32(2 * vmm.MaxExtra) {
		f, err := m.Listen(t.Context(), 40000+port)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) > vmm.MaxExtra+20 {
		t.Errorf("there are %d files", len(entries))
	}
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
	if f, err := m.Listen(t.Context(), kept); err == nil || !strings.Contains(err.Error(), unix.EADDRINUSE.Error()) {
		t.Errorf("the port is somebody's: %v, %v", f, err)
	}
	var held []*os.File
	for port := range uint32(vmm.MaxExtra - 1) {
		f, err := m.Listen(t.Context(), 50000+port)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		held = append(held, f)
	}
	if f, err := m.Listen(t.Context(), 60000); err == nil || !strings.Contains(err.Error(), "close one") {
		t.Errorf("one too many: %v, %v", f, err)
	}
	held[0].Close()
	f, err := m.Listen(t.Context(), 60000)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
