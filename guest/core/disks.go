package core

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysBlock lists the disks.
const sysBlock = "/sys/block"

// DiskBySerial finds the disk with a serial number, by which the host names it
// whatever its letter is. It returns "" when there is none.
func DiskBySerial(serial string) (device string, err error) {
	return diskBySerial(sysBlock, serial)
}

func diskBySerial(dir, serial string) (string, error) {
	disks, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("cannot list the disks: %w", err)
	}
	for _, d := range disks {
		// Not every kind of disk has one.
		text, err := os.ReadFile(filepath.Join(dir, d.Name(), "serial"))
		if err == nil && strings.TrimSpace(string(text)) == serial {
			return "/dev/" + d.Name(), nil
		}
	}
	return "", nil
}
