package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/daemon/setup/setuptest"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// deaf hears no announcement.
type deaf struct{}

func (deaf) Emit(uint32, string, proto.Message)                        {}
func (deaf) EmitChange(uint32, string, string, uint64, map[string]any) {}

// noFiles opens nothing: what a path leads to on the host that fuzzes is
// nobody's business.
type noFiles struct{}

func (noFiles) Open(_ context.Context, _ policy.Caller, path string, _ policy.Mode) (*os.File, error) {
	return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
}

// fuzzService is a real service whose VMs end as soon as they are started.
func fuzzService(f *testing.F) (s *concierge.Service, state, runtime string) {
	f.Helper()
	dir, err := os.MkdirTemp("", "fz") // short, because socket addresses are
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		f.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	if err := os.Mkdir(image, 0o755); err != nil {
		f.Fatal(err)
	}
	var manifest struct {
		Files []map[string]any `json:"files"`
	}
	for _, name := range []string{"vmlinux", "initramfs.cpio", "rootfs.squashfs"} {
		if err := os.WriteFile(filepath.Join(image, name), []byte(name), 0o644); err != nil {
			f.Fatal(err)
		}
		manifest.Files = append(manifest.Files, map[string]any{"name": name, "size": len(name)})
	}
	text, _ := json.Marshal(manifest)
	if err := os.WriteFile(filepath.Join(image, "manifest.json"), text, 0o644); err != nil {
		f.Fatal(err)
	}
	state, runtime = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	var o options
	flags := pflag.NewFlagSet("fuzz", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse([]string{"--supervisor", "/bin/false", "--vm-user", "nobody", "--accel", "tcg",
		"--state-dir", state, "--runtime-dir", runtime, "--image-dir", image}); err != nil {
		f.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg, err := o.config(log)
	if err != nil {
		f.Fatal(err)
	}
	cfg.Opener, cfg.Events = noFiles{}, deaf{}
	if s, err = concierge.New(f.Context(), cfg); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	return s, state, runtime
}

// frugal keeps a request from taking the space of the host that fuzzes.
func frugal(m protoreflect.Message) {
	if fd := m.Descriptor().Fields().ByName("allocation_type"); fd != nil {
		m.Clear(fd)
	}
}

// FuzzHandlers: whatever a request of any method of the table says, its handler
// comes to an end, answers what can be sent, and leaves no VM.
func FuzzHandlers(f *testing.F) {
	service, state, runtime := fuzzService(f)
	handlers := &setuptest.Handlers{Methods: dbus.ConciergeService(nil).Methods, Handler: service, Patience: time.Minute, Tame: frugal,
		Subject: policy.Subject{Caller: policy.Caller{UID: 64101}, Owner: policy.Owner{UID: 64101, Word: "64101"}}}
	handlers.Seeds(f, func(name string, payload []byte) { f.Add(name, payload) })
	for name, req := range map[string]proto.Message{
		"StartVm":         &pb.StartVmRequest{Name: "x"},
		"CreateDiskImage": &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 62},
		"ListVmDisks":     &pb.ListVmDisksRequest{AllLocations: true},
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(name, b)
	}
	f.Fuzz(func(t *testing.T, name string, payload []byte) {
		name = handlers.Call(t, name, payload)
		for _, d := range []string{"vms", "records"} {
			if left, err := os.ReadDir(filepath.Join(runtime, d)); err != nil || len(left) > 0 {
				t.Fatalf("%s left %v, %v", name, left, err)
			}
		}
		if err := os.RemoveAll(filepath.Join(state, "disks", "64101")); err != nil {
			t.Fatal(err)
		}
	})
}
