package core

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDiskBySerial(t *testing.T) {
	dir := t.TempDir()
	for name, serial := range map[string]string{"vda": "rootfs", "vdb": "tools\n", "vdc": "tool", "loop0": ""} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if serial != "" {
			writeFile(t, filepath.Join(dir, name, "serial"), serial)
		}
	}
	for serial, want := range map[string]string{"tools": "/dev/vdb", "rootfs": "/dev/vda", "tool": "/dev/vdc", "disk0": ""} {
		if got, err := diskBySerial(dir, serial); got != want || err != nil {
			t.Errorf("%s is %q, %v, want %q", serial, got, err, want)
		}
	}
	if got, err := diskBySerial(dir+"/none", "tools"); got != "" || err == nil {
		t.Errorf("without a list of disks: %q, %v", got, err)
	}
}
