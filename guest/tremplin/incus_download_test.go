//go:build incus

package tremplin_test

import (
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// A test/containers/testserver listens at port 8000, one with --spoil at 8001.
func TestDownloads(t *testing.T) {
	c, h, _ := start(t, func(cfg *tremplin.Config) { cfg.DownloadIdle = 3 * time.Second; cfg.Milestone = 8000 })
	ctx := t.Context()
	for _, test := range []struct {
		server string
		want   pb.ContainerCreationProgress_Status
	}{
		{"http://127.0.0.1:8000/stall/", pb.ContainerCreationProgress_DOWNLOAD_TIMED_OUT},
		{"http://127.0.0.1:8000/cut/", pb.ContainerCreationProgress_FAILED},
		{"http://127.0.0.1:8001/fast/", pb.ContainerCreationProgress_FAILED},
		{"http://127.0.0.1:8002/fast/", pb.ContainerCreationProgress_FAILED},
		{"http://127.0.0.1:%d/slow/", pb.ContainerCreationProgress_CREATED},
	} {
		h.forget()
		if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "remote", ImageServer: test.server, ImageAlias: "debian/13"}); err != nil || r.Status != pb.CreateContainerResponse_CREATING {
			t.Fatal(r, err)
		}
		last, n := int32(-1), 0
		p := await(h, "create ended", func(p *pb.ContainerCreationProgress) bool {
			if p.Status == pb.ContainerCreationProgress_DOWNLOADING {
				if n++; p.DownloadProgress < last {
					t.Errorf("%d after %d", p.DownloadProgress, last)
				}
				last = p.DownloadProgress
			}
			return p.Status != pb.ContainerCreationProgress_DOWNLOADING
		})
		t.Log(test.server, p, n, last)
		if p.Status != test.want {
			t.Fatal(p)
		}
		nothingHalfMade(t, c)
	}
	// Deleting ends a creation.
	if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "never", ImageServer: "http://127.0.0.1:8000/stall/", ImageAlias: "debian/13"}); err != nil || r.Status != pb.CreateContainerResponse_CREATING {
		t.Fatal(r, err)
	}
	await(h, "downloading", func(p *pb.ContainerCreationProgress) bool { return p.ContainerName == "never" })
	if r, err := c.DeleteContainer(ctx, &pb.DeleteContainerRequest{ContainerName: "never"}); err != nil || r.Status != pb.DeleteContainerResponse_DOES_NOT_EXIST {
		t.Fatal(r, err)
	}
	created(t, h, pb.ContainerCreationProgress_CANCELLED)
	nothingHalfMade(t, c)
}
