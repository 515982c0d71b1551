//go:build incus

package tremplin_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/guest/tremplin"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
)

func create(t *testing.T, c pb.TremplinClient, h *host, name string) {
	t.Helper()
	if r, err := c.CreateContainer(t.Context(), &pb.CreateContainerRequest{ContainerName: name}); err != nil || r.Status != pb.CreateContainerResponse_CREATING {
		t.Fatal(r, err)
	}
	created(t, h, pb.ContainerCreationProgress_CREATED)
	if r, err := c.SetUpUser(t.Context(), &pb.SetUpUserRequest{ContainerName: name, ContainerUsername: "alice"}); err != nil || r.Status != pb.SetUpUserResponse_SUCCESS {
		t.Fatal(r, err)
	}
}

func created(t *testing.T, h *host, want pb.ContainerCreationProgress_Status) *pb.ContainerCreationProgress {
	t.Helper()
	p := await(h, "create ended", func(p *pb.ContainerCreationProgress) bool {
		return p.Status != pb.ContainerCreationProgress_DOWNLOADING
	})
	if p.Status != want {
		t.Fatal(p)
	}
	return p
}

func rootOf(name string) string {
	return "/mnt/stateful/incus/storage-pools/default/containers/" + name + "/rootfs"
}

// nothingHalfMade fails when there is something that no container is.
func nothingHalfMade(t *testing.T, c pb.TremplinClient) {
	t.Helper()
	// Which waits for an Incus that is started again.
	if r, err := c.GetContainerInfo(t.Context(), &pb.GetContainerInfoRequest{ContainerName: "nobody"}); err != nil || r.Status != pb.GetContainerInfoResponse_NOT_FOUND {
		t.Fatal(r, err)
	}
	for _, q := range []string{"/1.0/instances", "/1.0/images"} {
		out, err := exec.Command("incus", "query", q).Output()
		var list []string
		if err != nil || json.Unmarshal(out, &list) != nil {
			t.Fatal(err, string(out))
		}
		t.Log(q, list)
		for _, l := range list {
			if strings.Contains(l, "auberge-") {
				t.Errorf("half-made: %s", l)
			}
		}
		if q == "/1.0/images" && len(list) > 1 {
			t.Errorf("images: %v", list)
		}
	}
}

func exported(h *host) *pb.ContainerExportProgress {
	return await(h, "export", func(p *pb.ContainerExportProgress) bool {
		return p.Status != pb.ContainerExportProgress_EXPORTING_STREAMING
	})
}

func imported(h *host) *pb.ContainerImportProgress {
	return await(h, "import", func(p *pb.ContainerImportProgress) bool {
		return p.Status != pb.ContainerImportProgress_IMPORTING_UPLOAD && p.Status != pb.ContainerImportProgress_IMPORTING_UNPACK
	})
}

func TestExportAndImport(t *testing.T) {
	var dir string
	c, h, _ := start(t, func(cfg *tremplin.Config) { dir = filepath.Join(cfg.IncusDir, "../transfer") })
	ctx := t.Context()
	create(t, c, h, "penguin")
	os.WriteFile(rootOf("penguin")+"/home/alice/data", []byte("mine"), 0o600)
	os.Chown(rootOf("penguin")+"/home/alice/data", 1000, 1000)
	os.Link(rootOf("penguin")+"/home/alice/data", rootOf("penguin")+"/home/alice/data2")
	if r, err := c.ExportContainer(ctx, &pb.ExportContainerRequest{ContainerName: "penguin", ExportPath: "p.tar.gz"}); err != nil || r.Status != pb.ExportContainerResponse_EXPORTING {
		t.Fatal(r, err)
	}
	if p := exported(h); p.Status != pb.ContainerExportProgress_DONE || p.InputBytesStreamed == 0 || p.InputFilesStreamed != p.TotalInputFiles || p.InputBytesStreamed != p.TotalInputBytes {
		t.Fatal(p)
	}
	for _, bad := range []string{"../x", "/etc/passwd", "p.tar.gz", "", "/mnt/stateful/transfer/../x"} {
		if r, err := c.ExportContainer(ctx, &pb.ExportContainerRequest{ContainerName: "penguin", ExportPath: bad}); err != nil || r.Status != pb.ExportContainerResponse_FAILED {
			t.Fatal(bad, r, err)
		} else {
			t.Log(r.FailureReason)
		}
	}
	os.WriteFile(rootOf("penguin")+"/home/alice/data", []byte("lost"), 0o600)
	// Over the old one.
	if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "penguin", ImportPath: "/mnt/stateful/transfer/p.tar.gz"}); err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
		t.Fatal(r, err)
	}
	if p := imported(h); p.Status != pb.ContainerImportProgress_DONE {
		t.Fatal(p)
	}
	if b, err := os.ReadFile(rootOf("penguin") + "/home/alice/data2"); err != nil || string(b) != "mine" {
		t.Fatal(string(b), err)
	}
	if st, err := os.Stat(rootOf("penguin") + "/home/alice/data2"); err != nil || st.Sys().(*syscall.Stat_t).Uid != 1000 || st.Sys().(*syscall.Stat_t).Nlink != 2 {
		t.Fatal(st, err)
	}
	for _, tool := range []string{"/usr/bin/sudo"} {
		if st, err := os.Stat(rootOf("penguin") + tool); err != nil || st.Mode()&os.ModeSetuid == 0 {
			t.Fatal(st, err)
		}
	}
	// As another.
	if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "other", ImportPath: "p.tar.gz"}); err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
		t.Fatal(r, err)
	}
	if p := imported(h); p.Status != pb.ContainerImportProgress_DONE {
		t.Fatal(p)
	}
	if b, err := os.ReadFile(rootOf("other") + "/etc/hostname"); err != nil || string(b) != "other\n" {
		t.Fatal(string(b), err)
	}
	if r, err := c.StartContainer(ctx, &pb.StartContainerRequest{ContainerName: "other", Token: "0123456789"}); err != nil || r.Status != pb.StartContainerResponse_STARTING {
		t.Fatal(r, err)
	}
	if p := await(h, "start", func(p *pb.ContainerStartProgress) bool { return p.Status != pb.ContainerStartProgress_STARTING }); p.Status != pb.ContainerStartProgress_STARTED {
		t.Fatal(p)
	}
	if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "other", ImportPath: "p.tar.gz"}); err != nil || r.Status != pb.ImportContainerResponse_FAILED {
		t.Fatal("over a running one:", r, err)
	}
	if r, err := c.GetContainerUsername(ctx, &pb.GetContainerUsernameRequest{ContainerName: "other"}); err != nil || r.Username != "alice" || r.Homedir != "/home/alice" {
		t.Fatal(r, err)
	}
	if r, err := c.SetTimezone(ctx, &pb.SetTimezoneRequest{TimezoneName: "Europe/Paris", PosixTzString: "CET-1CEST"}); err != nil || r.Successes != 2 {
		t.Fatal(r, err)
	}
	if r, err := c.StopContainer(ctx, &pb.StopContainerRequest{ContainerName: "other"}); err != nil || r.Status != pb.StopContainerResponse_STOPPING {
		t.Fatal(r, err)
	}
	await(h, "stopped", func(p *pb.ContainerStopProgress) bool { return p.Status == pb.ContainerStopProgress_STOPPED })
	await(h, "shutdown", func(p *pb.ContainerShutdownInfo) bool { return p.ContainerName == "other" })
	nothingHalfMade(t, c)
	_ = dir

	for name, bad := range map[string]func(*tar.Writer){
		"arch": func(w *tar.Writer) { file(w, "metadata.yaml", "architecture: sparc\n") },
		"link": func(w *tar.Writer) {
			file(w, "metadata.yaml", "architecture: x86_64\n")
			w.WriteHeader(&tar.Header{Name: "rootfs", Typeflag: tar.TypeSymlink, Linkname: "/"})
		},
		"cut": func(w *tar.Writer) { file(w, "metadata.yaml", "architecture: x86_64\n") },
	} {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		bad(w)
		if w.Close(); name != "cut" {
			z.Close()
		}
		os.WriteFile("/mnt/stateful/transfer/"+name, b.Bytes(), 0o600)
		if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "bad", ImportPath: name}); err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
			t.Fatal(r, err)
		}
		p := imported(h)
		t.Log(name, p)
		if name == "arch" && (p.Status != pb.ContainerImportProgress_FAILED_ARCHITECTURE || p.ArchitectureContainer != "sparc") || p.Status == pb.ContainerImportProgress_DONE {
			t.Fatal(p)
		}
	}
	nothingHalfMade(t, c)
}

func file(w *tar.Writer, name, content string) {
	w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
	w.Write([]byte(content))
}

func TestTransfersByStream(t *testing.T) {
	c, h, _ := start(t, nil)
	ctx := t.Context()
	create(t, c, h, "streamer")
	const id = "12345678-1234-1234-1234-123456789abc"
	open := func() net.Conn {
		conn, err := net.Dial("unix", h.moves)
		if err != nil {
			t.Fatal(err)
		}
		if err := vsock.WriteFrame(conn, []byte(id)); err != nil {
			t.Fatal(err)
		}
		if r, err := vsock.ReadFrame(conn, 16); err != nil || string(r) != "ready" {
			t.Fatal(string(r), err)
		}
		return conn
	}
	if r, err := c.ExportContainer(ctx, &pb.ExportContainerRequest{ContainerName: "streamer", ExportPath: "transfer:" + id}); err != nil || r.Status != pb.ExportContainerResponse_FAILED {
		t.Fatal(r, err)
	}
	conn := open()
	if r, err := c.ExportContainer(ctx, &pb.ExportContainerRequest{ContainerName: "streamer", ExportPath: "transfer:" + id}); err != nil || r.Status != pb.ExportContainerResponse_EXPORTING {
		t.Fatal(r, err)
	}
	var data bytes.Buffer
	if _, err := data.ReadFrom(vsock.NewFrameReader(conn)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if p := exported(h); p.Status != pb.ContainerExportProgress_DONE || p.BytesExported != uint64(data.Len()) {
		t.Fatal(p, data.Len())
	}
	for _, whole := range []bool{false, true} {
		conn = open()
		if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "twin", ImportPath: "transfer:" + id}); err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
			t.Fatal(r, err)
		}
		w := vsock.NewFrameWriter(conn)
		if !whole {
			w.Write(data.Bytes()[:data.Len()/2])
			conn.Close()
			if p := imported(h); p.Status != pb.ContainerImportProgress_FAILED {
				t.Fatal(p)
			}
			continue
		}
		if _, err := w.Write(data.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if p := imported(h); p.Status != pb.ContainerImportProgress_DONE {
			t.Fatal(p)
		}
		conn.Close()
	}
	// Cancelled in the middle.
	conn = open()
	if r, err := c.ExportContainer(ctx, &pb.ExportContainerRequest{ContainerName: "streamer", ExportPath: "transfer:" + id}); err != nil || r.Status != pb.ExportContainerResponse_EXPORTING {
		t.Fatal(r, err)
	}
	vsock.ReadFrame(conn, vsock.MaxFrame)
	if r, err := c.CancelExportContainer(ctx, &pb.CancelExportContainerRequest{InProgressContainerName: "streamer"}); err != nil || r.Status != pb.CancelExportContainerResponse_CANCEL_QUEUED {
		t.Fatal(r, err)
	}
	if p := exported(h); p.Status != pb.ContainerExportProgress_CANCELLED {
		t.Fatal(p)
	}
	conn.Close()
	conn = open()
	if r, err := c.ImportContainer(ctx, &pb.ImportContainerRequest{ContainerName: "twin", ImportPath: "transfer:" + id}); err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
		t.Fatal(r, err)
	}
	vsock.NewFrameWriter(conn).Write(data.Bytes()[:data.Len()/2])
	if r, err := c.CancelImportContainer(ctx, &pb.CancelImportContainerRequest{InProgressContainerName: "twin"}); err != nil || r.Status != pb.CancelImportContainerResponse_CANCEL_QUEUED {
		t.Fatal(r, err)
	}
	if p := imported(h); p.Status != pb.ContainerImportProgress_CANCELLED {
		t.Fatal(p)
	}
	nothingHalfMade(t, c)
}
