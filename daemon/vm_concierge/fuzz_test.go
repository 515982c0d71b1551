package main

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/concierge"
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

// full sets every field of a message to something.
func full(m protoreflect.Message, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		switch {
		case fd.IsMap(), fd.Message() != nil && depth == 0:
		case fd.IsList() && fd.Message() != nil:
			full(m.Mutable(fd).List().AppendMutable().Message(), depth-1)
		case fd.IsList():
			m.Mutable(fd).List().Append(sample(fd))
		case fd.Message() != nil:
			full(m.Mutable(fd).Message(), depth-1)
		default:
			m.Set(fd, sample(fd))
		}
	}
}

func sample(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	}
	panic(fmt.Sprintf("no sample of %v", fd.Kind()))
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
	methods := dbus.ConciergeService(nil).Methods
	for _, m := range methods {
		f.Add(m.Name, []byte{})
		if m.Request == nil {
			continue
		}
		req := m.Request.ProtoReflect().New()
		full(req, 2)
		b, err := proto.Marshal(req.Interface())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Name, b)
		f.Add(m.Name, b[:len(b)/2])
	}
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
	me := policy.Subject{Caller: policy.Caller{UID: 64101}, Owner: policy.Owner{UID: 64101, Word: "64101"}}
	f.Fuzz(func(t *testing.T, name string, payload []byte) {
		m, ok := dbus.ConciergeService(nil).Method(name)
		if !ok {
			h := fnv.New32a()
			io.WriteString(h, name)
			m = methods[int(h.Sum32()%uint32(len(methods)))]
		}
		// The reader of requests has the same options; see dbus.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		args := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(me)}
		if m.Request != nil {
			req := m.Request.ProtoReflect().New()
			if (proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 100}).Unmarshal(payload, req.Interface()) != nil {
				return
			}
			frugal(req)
			args = append(args, reflect.ValueOf(req.Interface()))
		}
		handler := reflect.ValueOf(service).MethodByName(m.Name)
		if handler.Type().NumIn() > len(args) {
			args = append(args, reflect.Zero(handler.Type().In(len(args)))) // no descriptors
		}
		results := handler.Call(args)
		if ctx.Err() != nil {
			t.Fatalf("%s hangs", m.Name)
		}
		err, _ := results[len(results)-1].Interface().(error)
		if err == nil && m.Response != nil {
			resp := results[0].Interface().(proto.Message)
			if !resp.ProtoReflect().IsValid() {
				t.Fatalf("%s answers nothing", m.Name)
			}
			if _, err := proto.Marshal(resp); err != nil {
				t.Fatalf("%s answers what cannot be sent: %v", m.Name, err)
			}
		}
		for _, d := range []string{"vms", "records"} {
			if left, err := os.ReadDir(filepath.Join(runtime, d)); err != nil || len(left) > 0 {
				t.Fatalf("%s left %v, %v", m.Name, left, err)
			}
		}
		if err := os.RemoveAll(filepath.Join(state, "disks", "64101")); err != nil {
			t.Fatal(err)
		}
	})
}
