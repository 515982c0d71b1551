package containers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// archives writes the container to a file, deletes it, and gets it back.
func (s *stack) archives() {
	s.t.Helper()
	s.keep()
	dir := filepath.Join(s.Home(testbed.Alice), "archives")
	s.run("mkdir", dir)
	file := filepath.Join(dir, "penguin.tar.gz")
	s.interrupted(dir, file)
	s.run("vmc", "export-container", vm, container, file)
	if out, code := s.ends(nil, "vmc", "import-container", vm, container, file); code != 1 || !strings.Contains(out, "stop it") {
		s.t.Errorf("an import over a container that runs: code %d, %s", code, out)
	}
	s.run("vmc", "stop-container", vm, container)
	s.run("vmc", "delete-container", vm, container, "--yes")
	s.run("vmc", "import-container", vm, container, file)
	s.kept(container)
	s.run("vmc", "start-container", vm, container)
	if got := s.shell("cat kept; cat /etc/hostname; hello-clients"); got != "kept here\n"+container+"\nhello" {
		s.t.Errorf("after all: %q", got)
	}
	s.badArchives()
	s.vmRoot("rm -r /mnt/stateful/transfer")
	s.nothingHalfMade(container)
}

// keep leaves something in the container for kept.
func (s *stack) keep() {
	s.t.Helper()
	s.shell("echo 'kept here' >kept; ln kept again")
}

// interrupted begins an export and interrupts it, which leaves nothing.
func (s *stack) interrupted(dir, file string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	c := s.Command(testbed.Alice, "vmc", "export-container", vm, container, file)
	errs, err := c.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { c.Process.Kill() })
	one := make([]byte, 1) // it says that it begins
	if _, err := errs.Read(one); err != nil {
		s.t.Error(err)
	}
	c.Process.Signal(syscall.SIGINT)
	var said bytes.Buffer
	said.ReadFrom(errs)
	c.Wait()
	stop()
	if code := c.ProcessState.ExitCode(); code != 1 || !strings.Contains(said.String(), "cancelled") {
		s.t.Errorf("interrupted: code %d, %q", code, said.String())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		s.t.Errorf("left: %v, %v", left, err)
	}
}

// kept looks in what came back for what an archive has to keep: content,
// owners, names, modes.
func (s *stack) kept(name string) {
	s.t.Helper()
	if got := s.vmRoot("cd /mnt/stateful/incus/storage-pools/default/containers/" + name + "/rootfs; cat home/alice/kept; stat -c '%u:%g %h' home/alice/again; stat -c %A usr/bin/sudo"); got != "kept here\n1000:1000 2\n-rwsr-xr-x" {
		s.t.Errorf("%s came back with %q", name, got)
	}
}

// exportInVM exports the container to a file in the VM.
func (s *stack) exportInVM() {
	s.t.Helper()
	export := func(path string) ciceronepb.ExportLxdContainerResponse_Status {
		var resp ciceronepb.ExportLxdContainerResponse
		s.must("ExportLxdContainer", &ciceronepb.ExportLxdContainerRequest{VmName: vm, ContainerName: container, ExportPath: path}, &resp)
		return resp.Status
	}
	onlyOnce[*exporting](s)
	if st := export("/mnt/stateful/transfer/p.tar.gz"); st != ciceronepb.ExportLxdContainerResponse_EXPORTING {
		s.t.Fatalf("ExportLxdContainer: %v", st)
	}
	end := await(s.ear, func(m *exporting) bool {
		return m.Status != ciceronepb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING
	})
	if end.Status != ciceronepb.ExportLxdContainerProgressSignal_DONE || end.TotalInputFiles == 0 || end.TotalInputBytes == 0 || end.BytesExported == 0 ||
		end.InputFilesStreamed != end.TotalInputFiles || end.InputBytesStreamed != end.TotalInputBytes {
		s.t.Errorf("the export in the VM ends with %v", end)
	}
	for _, path := range []string{"p.tar.gz", "/etc/x", "no/x"} { // there already, elsewhere, nowhere
		if st := export(path); st != ciceronepb.ExportLxdContainerResponse_FAILED {
			s.t.Errorf("an export to %s: %v", path, st)
		}
	}
}

// beginImport begins to import a container from a file in the VM.
func (s *stack) beginImport(name, path string) {
	s.t.Helper()
	onlyOnce[*importing](s)
	var resp ciceronepb.ImportLxdContainerResponse
	s.must("ImportLxdContainer", &ciceronepb.ImportLxdContainerRequest{VmName: vm, ContainerName: name, ImportPath: path}, &resp)
	if resp.Status != ciceronepb.ImportLxdContainerResponse_IMPORTING {
		s.t.Fatalf("ImportLxdContainer from %s: %v", path, &resp)
	}
}

func (s *stack) importEnd() *importing {
	s.t.Helper()
	return await(s.ear, func(m *importing) bool {
		return m.Status != ciceronepb.ImportLxdContainerProgressSignal_IMPORTING_UPLOAD && m.Status != ciceronepb.ImportLxdContainerProgressSignal_IMPORTING_UNPACK
	})
}

// importInVM imports from a file in the VM, over a container that is there, after
// a first try that is cancelled and leaves it as it is.
func (s *stack) importInVM(name, path string) {
	s.t.Helper()
	s.beginImport(name, path)
	await(s.ear, func(m *importing) bool {
		return m.Status == ciceronepb.ImportLxdContainerProgressSignal_IMPORTING_UPLOAD
	})
	var cancel ciceronepb.CancelImportLxdContainerResponse
	s.must("CancelImportLxdContainer", &ciceronepb.CancelImportLxdContainerRequest{VmName: vm, InProgressContainerName: name}, &cancel)
	if end := s.importEnd(); cancel.Status != ciceronepb.CancelImportLxdContainerResponse_CANCEL_QUEUED || end.Status != ciceronepb.ImportLxdContainerProgressSignal_CANCELLED {
		s.t.Errorf("a cancelled import: %v, %v", &cancel, end)
	}
	s.beginImport(name, path)
	if end := s.importEnd(); end.Status != ciceronepb.ImportLxdContainerProgressSignal_DONE {
		s.t.Fatalf("the import in the VM ends with %v", end)
	}
	s.kept(name)
}

// badArchives are not imported, and leave nothing.
func (s *stack) badArchives() {
	s.t.Helper()
	all[*importing](s.ear) // vmc's own
	for name, bad := range map[string]struct {
		metadata string
		links    bool // its root leads elsewhere
		short    bool
		end      ciceronepb.ImportLxdContainerProgressSignal_Status
	}{
		"arch": {metadata: "architecture: sparc\n", end: ciceronepb.ImportLxdContainerProgressSignal_FAILED_ARCHITECTURE},
		"link": {metadata: "architecture: x86_64\n", links: true, end: ciceronepb.ImportLxdContainerProgressSignal_FAILED},
		"cut":  {metadata: "architecture: x86_64\n", short: true, end: ciceronepb.ImportLxdContainerProgressSignal_FAILED},
	} {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		w.WriteHeader(&tar.Header{Name: "metadata.yaml", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(bad.metadata))})
		w.Write([]byte(bad.metadata))
		if bad.links {
			w.WriteHeader(&tar.Header{Name: "rootfs", Typeflag: tar.TypeSymlink, Linkname: "/"})
		}
		w.Close()
		if !bad.short {
			z.Close()
		}
		file := filepath.Join(s.t.TempDir(), name)
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			s.t.Fatal(err)
		}
		s.put(file, "/mnt/stateful/transfer/"+name)
		s.beginImport("bad", name)
		end := s.importEnd()
		if end.Status != bad.end || end.FailureReason == "" || name == "arch" && end.ArchitectureContainer != "sparc" {
			s.t.Errorf("the archive %s ends with %v, want %v", name, end, bad.end)
		}
	}
}
