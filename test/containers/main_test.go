// Package containers tests containers end to end on the real stack: the
// daemons as users of their own on a private bus, VMs under emulation, Incus in
// them, systemd, PackageKit and our agents in the containers. `make test` gives
// it the built programs and the guest image.
package containers

import (
	"fmt"
	"os"
	"sync"
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

// Two VMs are as many as the machine has processors for; the lanes take about
// the same time.
var firstLane, secondLane sync.Mutex

// beside runs a test beside those of the other lane.
func beside(t *testing.T, lane *sync.Mutex) {
	t.Parallel()
	lane.Lock()
	t.Cleanup(lane.Unlock) // after all of the test's own
}
