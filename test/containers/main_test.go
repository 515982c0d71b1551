// Package containers tests containers end to end on the real stack: the
// daemons as users of their own on a private bus, VMs under emulation, Incus in
// them, systemd, PackageKit and our agents in the containers. `make test` gives
// it the built programs and the guest image.
package containers

import (
	"fmt"
	"os"
	"testing"

	"github.com/auberge-vm/auberge/test/testbed"
)

var bin, image string

func TestMain(m *testing.M) {
	if err := testbed.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin, image = os.Getenv("AUBERGE_BIN"), os.Getenv("AUBERGE_IMAGE_DIR")
	if bin == "" || image == "" {
		fmt.Fprintln(os.Stderr, "containers: set AUBERGE_BIN and AUBERGE_IMAGE_DIR, or use make test")
		os.Exit(1)
	}
	os.Exit(m.Run())
}
