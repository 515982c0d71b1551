// Package containers tests containers end to end on the real stack: the
// daemons as users of their own on a private bus, VMs under emulation, Incus in
// them, systemd, PackageKit and our agents in the containers. `make test` gives
// it the built programs and the guest image.
package containers

import (
	"fmt"
	"os"
	"slices"
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

// A turn is a test's that waits for one of the lanes.
type turn struct {
	seconds int // that the test takes, about
	mine    chan struct{}
}

// Two VMs are as many as the machine has processors for. The longest test goes
// first.
var lanes = struct {
	sync.Mutex
	free    int
	waiting []turn
}{free: 2}

// lane waits for a lane, and has it until the test ends.
func lane(t *testing.T, seconds int) {
	own := turn{seconds, make(chan struct{})}
	lanes.Lock()
	lanes.waiting = append(lanes.waiting, own)
	nextTurn()
	lanes.Unlock()
	<-own.mine
	t.Cleanup(func() { // after all of the test's own
		lanes.Lock()
		defer lanes.Unlock()
		lanes.free++
		nextTurn()
	})
}

// nextTurn gives away what is free; lanes are locked.
func nextTurn() {
	for lanes.free > 0 && len(lanes.waiting) > 0 {
		i := 0
		for k, w := range lanes.waiting {
			if w.seconds > lanes.waiting[i].seconds {
				i = k
			}
		}
		lanes.free--
		close(lanes.waiting[i].mine)
		lanes.waiting = slices.Delete(lanes.waiting, i, i+1)
	}
}

// beside runs a test beside others.
func beside(t *testing.T, seconds int) {
	t.Parallel()
	lane(t, seconds)
}

// fromTheStart is beside for the two tests that need nothing of others.
func fromTheStart(t *testing.T) {
	lane(t, 0)
	t.Parallel()
}
