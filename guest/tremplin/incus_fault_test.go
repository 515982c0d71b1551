//go:build incus

package tremplin_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// killIncus kills the incusd of this machine, as GetDebugInfo names it.
func killIncus(t *testing.T, c pb.TremplinClient) {
	t.Helper()
	r, err := c.GetDebugInfo(t.Context(), &pb.GetDebugInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(r.DebugInformation, ", pid ")
	pid, err := strconv.Atoi(strings.SplitN(rest, "\n", 2)[0])
	if err != nil {
		t.Fatal(r, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func startContainer(t *testing.T, c pb.TremplinClient, h *host, name string) {
	t.Helper()
	if r, err := c.StartContainer(t.Context(), &pb.StartContainerRequest{ContainerName: name, Token: "0123456789"}); err != nil || r.Status != pb.StartContainerResponse_STARTING {
		t.Fatal(r, err)
	}
	if p := await(h, "start", func(p *pb.ContainerStartProgress) bool { return p.Status != pb.ContainerStartProgress_STARTING }); p.Status != pb.ContainerStartProgress_STARTED {
		t.Fatal(p)
	}
}

func TestIncusKilled(t *testing.T) {
	c, h, _ := start(t, nil)
	ctx := t.Context()
	create(t, c, h, "survivor")
	startContainer(t, c, h, "survivor")
	killIncus(t, c)
	if r, err := c.GetContainerInfo(ctx, &pb.GetContainerInfoRequest{ContainerName: "survivor"}); err != nil || r.Status != pb.GetContainerInfoResponse_RUNNING {
		t.Fatal(r, err)
	}
	for _, when := range []string{"at once", "when Incus has begun"} {
		if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "made"}); err != nil || r.Status != pb.CreateContainerResponse_CREATING {
			t.Fatal(r, err)
		}
		if when != "at once" {
			begun(t, "made")
		}
		killIncus(t, c)
		p := await(h, "create ended", func(p *pb.ContainerCreationProgress) bool {
			return p.Status != pb.ContainerCreationProgress_DOWNLOADING
		})
		t.Log(when, p)
		nothingHalfMade(t, c)
	}
	create2 := func() *pb.ContainerCreationProgress {
		if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "made"}); err != nil || r.Status == pb.CreateContainerResponse_FAILED {
			t.Fatal(r, err)
		}
		return created(t, h, pb.ContainerCreationProgress_CREATED)
	}
	t.Log(create2())
	os.MkdirAll("/mnt/stateful/transfer", 0o700)
	if r, err := c.ExportContainer(ctx, &pb.ExportContainerRequest{ContainerName: "survivor", ExportPath: "x"}); err != nil || r.Status != pb.ExportContainerResponse_EXPORTING {
		t.Fatal(r, err)
	}
	if p := exported(h); p.Status != pb.ContainerExportProgress_DONE {
		t.Fatal(p)
	}
	if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "again", ImportPath: "x"}); err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
		t.Fatal(r, err)
	}
	await(h, "import goes on", func(p *pb.ContainerImportProgress) bool { return p.ContainerName == "again" })
	killIncus(t, c)
	if p := imported(h); p.Status != pb.ContainerImportProgress_FAILED {
		t.Fatal(p)
	} else {
		t.Log(p)
	}
	nothingHalfMade(t, c)
	// The container is still there, and its end is noticed although Incus was
	// not there to see it.
	pid := initOf(t, "survivor")
	killIncus(t, c)
	syscall.Kill(pid, syscall.SIGKILL)
	await(h, "shutdown", func(p *pb.ContainerShutdownInfo) bool { return p.ContainerName == "survivor" })
}

// begun waits until Incus knows a container that is being made, or is done.
func begun(t *testing.T, name string) {
	t.Helper()
	for t.Context().Err() == nil {
		out, err := exec.CommandContext(t.Context(), "incus", "list", "--format", "csv", "--columns", "n").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range strings.Fields(string(out)) {
			if n == name || strings.HasPrefix(n, "auberge-create-") {
				return
			}
		}
	}
}

func initOf(t *testing.T, name string) int {
	out, err := exec.Command("incus", "query", "/1.0/instances/"+name+"/state").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), `"pid": `)
	pid, err := strconv.Atoi(strings.SplitN(rest, ",", 2)[0])
	if err != nil {
		t.Fatal(err, string(out))
	}
	return pid
}

func TestResetDatabase(t *testing.T) {
	c, h, _ := start(t, nil)
	ctx := t.Context()
	create(t, c, h, "kept")
	if r, err := c.StartLxd(ctx, &pb.StartLxdRequest{ResetLxdDb: true}); err != nil || r.Status != pb.StartLxdResponse_STARTING {
		t.Fatal(r, err)
	}
	await(h, "recovering", func(p *pb.StartLxdProgress) bool { return p.Status == pb.StartLxdProgress_RECOVERING })
	await(h, "its start", func(p *pb.StartLxdProgress) bool { return p.Status == pb.StartLxdProgress_STARTED })
	p := await(h, "started", func(p *pb.StartLxdProgress) bool {
		return p.Status == pb.StartLxdProgress_STARTED || p.Status == pb.StartLxdProgress_FAILED
	})
	if p.Status != pb.StartLxdProgress_STARTED {
		t.Fatal(p)
	}
	startContainer(t, c, h, "kept")
}

func TestAnotherTremplinTakesOver(t *testing.T) {
	c, h, stop := start(t, nil)
	create(t, c, h, "heir")
	startContainer(t, c, h, "heir")
	h.leave = true
	stop()
	c, h, _ = start(t, nil)
	await(h, "started", func(p *pb.StartLxdProgress) bool { return p.Status == pb.StartLxdProgress_STARTED })
	if r, err := c.GetContainerInfo(t.Context(), &pb.GetContainerInfoRequest{ContainerName: "heir"}); err != nil || r.Status != pb.GetContainerInfoResponse_RUNNING {
		t.Fatal(r, err)
	}
	await(h, "ports", func(p *pb.ListeningPortInfo) bool { return p.ContainerPorts["heir"] != nil })
	syscall.Kill(initOf(t, "heir"), syscall.SIGKILL)
	await(h, "shutdown", func(p *pb.ContainerShutdownInfo) bool { return p.ContainerName == "heir" })
	// What is not our child is started again too.
	killIncus(t, c)
	startContainer(t, c, h, "heir")
}
