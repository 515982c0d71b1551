package e2e

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// prepareToSuspend finds on the host what the guest had only in memory.
func (g *liveGuest) prepareToSuspend(t *testing.T) {
	// Not in one piece in the command, which could be found as well.
	g.sh(t, `w=written; for i in $(seq 1000); do echo $w-before-$i-the-suspend; done > /mnt/stateful/marks`)
	if _, err := g.m.PrepareToSuspend(t.Context(), &vmtoolspb.EmptyMessage{}); err != nil {
		t.Fatal(err)
	}
	if !holds(t, g.disk, "written-before-1-the-suspend") || !holds(t, g.disk, "written-before-1000-the-suspend") {
		t.Error("what the guest wrote is not on its disk")
	}
}

// holds tells whether a file contains a text.
func holds(t *testing.T, path, text string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := f.Read(buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(text)) {
			return true
		}
		if err == io.EOF {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		end := kept + n
		kept = min(len(text), end)
		copy(buf, buf[end-kept:end])
	}
}

// available is what the guest's df says of the stateful disk, in bytes.
func (g *liveGuest) available(t *testing.T) int64 {
	t.Helper()
	n, err := strconv.ParseInt(g.sh(t, "sync; stat -f -c '%a * %S' /mnt/stateful | xargs expr"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (g *liveGuest) updateStorageBalloon(t *testing.T) {
	const mib = 1 << 20
	update := func(state vmtoolspb.StatefulDiskSpaceState, free int64) {
		t.Helper()
		r, err := g.m.UpdateStorageBalloon(t.Context(), &vmtoolspb.UpdateStorageBalloonRequest{State: state, FreeSpaceBytes: free})
		if err != nil || r.Result != vmtoolspb.UpdateStorageBalloonResult_SUCCESS {
			t.Fatalf("%v with %d: %v, %v", state, free, r, err)
		}
	}
	near := func(want int64) {
		t.Helper()
		if got := g.available(t); got < want-48*mib || got > want+48*mib {
			t.Errorf("the guest has %d MiB, want about %d", got/mib, want/mib)
		}
	}
	whole := g.available(t)
	update(vmtoolspb.StatefulDiskSpaceState_DISK_LOW, 1<<30+200*mib)
	near(200 * mib)
	update(vmtoolspb.StatefulDiskSpaceState_DISK_CRITICAL, 1<<30)
	near(64 * mib)
	update(vmtoolspb.StatefulDiskSpaceState_DISK_NORMAL, 100<<30)
	near(whole)
	_, err := g.m.UpdateStorageBalloon(t.Context(), &vmtoolspb.UpdateStorageBalloonRequest{FreeSpaceBytes: 1 << 30})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a state: %v", err)
	}
}

// mountFlags mounts a disk as one that is not to be written.
func (g *liveGuest) mountFlags(t *testing.T) {
	const rdonly, noexec, noatime = 1, 8, 1024
	r, err := g.m.Mount(t.Context(), &vmtoolspb.MountRequest{Source: "/dev/vdb", Target: "/mnt/data/ro", Fstype: "btrfs",
		CreateTarget: true, Mountflags: rdonly | noexec | noatime, Options: "subvolid=5"})
	if err != nil || r.Error != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	got := g.sh(t, "cd /mnt/data/ro && touch x 2>/dev/null; echo $?; cd /; findmnt -n -o OPTIONS /mnt/data/ro | tr , '\\n' | grep -xE 'ro|noexec|noatime' | sort | paste -sd' '; umount /mnt/data/ro")
	if want := "1\nnoatime noexec ro"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// resize makes the stateful file system as small as it can be and as large as
// its disk again, with a file in it.
func (g *liveGuest) resize(t *testing.T) {
	const whole = 1 << 30
	g.sh(t, "head -c 20000000 /dev/urandom > /mnt/stateful/kept; sha256sum /mnt/stateful/kept > /mnt/stateful/sum")
	bounds, err := g.m.GetResizeBounds(t.Context(), &vmtoolspb.EmptyMessage{})
	if err != nil || bounds.MinimumSize < 20e6 || bounds.MinimumSize >= whole {
		t.Fatalf("bounds: %v, %v", bounds, err)
	}
	resize := func(size uint64) vmtoolspb.ResizeFilesystemResponse_ResizeStatus {
		t.Helper()
		r, err := g.m.ResizeFilesystem(t.Context(), &vmtoolspb.ResizeFilesystemRequest{Size: size})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	settle := func(want uint64) {
		t.Helper()
		for {
			s, err := g.m.GetResizeStatus(t.Context(), &vmtoolspb.EmptyMessage{})
			if err != nil {
				t.Fatal(err)
			}
			if s.ResizeInProgress {
				continue
			}
			// What btrfs itself says.
			got := g.sh(t, "btrfs filesystem show --raw /mnt/stateful | sed -n 's/.* size \\([0-9]*\\) .*/\\1/p'; cd /mnt/stateful && sha256sum -c --quiet sum")
			if s.CurrentSize != want || got != strconv.FormatUint(want, 10) {
				t.Errorf("the size is %v and %s, want %d", s, got, want)
			}
			return
		}
	}
	settle(whole)
	smaller := bounds.MinimumSize
	if s := resize(smaller); s != vmtoolspb.ResizeFilesystemResponse_STARTED {
		t.Fatal(s)
	}
	settle(smaller)
	space, err := g.m.GetAvailableSpace(t.Context(), &vmtoolspb.EmptyMessage{})
	if err != nil || space.AvailableSpace == 0 || space.AvailableSpace > smaller {
		t.Errorf("space: %v, %v", space, err)
	}
	// The disk is not made larger: it is waited for, and nothing changes.
	if s := resize(2 * whole); s != vmtoolspb.ResizeFilesystemResponse_STARTED {
		t.Fatal(s)
	}
	if s := resize(whole); s != vmtoolspb.ResizeFilesystemResponse_ALREADY_IN_PROGRESS {
		t.Errorf("a second one: %v", s)
	}
	settle(smaller)
	if s := resize(whole); s != vmtoolspb.ResizeFilesystemResponse_STARTED {
		t.Fatal(s)
	}
	settle(whole)
}
