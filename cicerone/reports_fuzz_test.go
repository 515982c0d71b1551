package cicerone_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// A report is one of the calls that guests make.
type report struct {
	line  *grpc.ClientConn
	path  string
	input protoreflect.MessageDescriptor
}

// reports are all calls that the agents of a VM may make.
func (m *machine) reports(t testing.TB) (all []report) {
	crash := m.line(7779)
	for _, service := range []struct {
		line *grpc.ClientConn
		file protoreflect.FileDescriptor
		name protoreflect.Name
	}{
		{m.tremplinLine, tpb.File_tremplin_proto, "TremplinListener"},
		{m.containerLine, cpb.File_container_host_proto, "ContainerListener"},
		{crash, pb.File_vm_crash_proto, "CrashListener"},
	} {
		d := service.file.Services().ByName(service.name)
		if d == nil {
			t.Fatalf("no service %s", service.name)
		}
		for i := range d.Methods().Len() {
			method := d.Methods().Get(i)
			all = append(all, report{line: service.line, path: "/" + string(d.FullName()) + "/" + string(method.Name()), input: method.Input()})
		}
	}
	return all
}

// signed adds a token to a report that has one, behind what it says itself.
func (r report) signed(b []byte, token string) []byte {
	fd := r.input.Fields().ByName("token")
	if fd == nil {
		return b
	}
	b = protowire.AppendTag(append([]byte{}, b...), fd.Number(), protowire.BytesType)
	return protowire.AppendString(b, token)
}

// FuzzReports: whatever a guest's agents report, with the token of a container
// or without, nobody is kept waiting, what is announced can be sent, and the
// service goes on.
func FuzzReports(f *testing.F) {
	w := newWorld(f)
	s := w.serve(func(c *cicerone.Config) { c.Log = slog.New(slog.DiscardHandler) })
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	all := m.reports(f)
	for i := range all {
		for _, b := range [][]byte{{}, {0x08, 0x01, 0x10, 0x32}, {0x0a, 7, 'p', 'e', 'n', 'g', 'u', 'i', 'n', 0x10, 1}, {0x12, 2, 0xff, 0xfe}, {0x0a, 0x7f}, {0x0b, 0x0b}} {
			f.Add(byte(i), true, b)
		}
		f.Add(byte(i), false, []byte{0x0a, 1, 'x'})
	}
	f.Fuzz(func(t *testing.T, which byte, sign bool, b []byte) {
		w.t = t
		cicerone.Forgive(s, 33)
		r := all[int(which)%len(all)]
		if !w.isRunning(s, "termina", "penguin") {
			again, err := s.GetContainerToken(t.Context(), subject(), &pb.ContainerTokenRequest{VmName: "termina", ContainerName: "penguin"})
			if err != nil {
				t.Fatal(err)
			}
			token = again.ContainerToken
			must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 10000}))
		}
		// What the reports may be about.
		must(t)(s.InstallLinuxPackage(t.Context(), subject(), &pb.InstallLinuxPackageRequest{VmName: "termina", PackageId: "a;1;all;"}))
		if sign {
			b = r.signed(b, token)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // dialogs wait for a person
		defer cancel()
		var reply []byte
		err := r.line.Invoke(ctx, r.path, &b, &reply, grpc.ForceCodec(rawCodec{}))
		if code := status.Code(err); code == codes.Unknown || code == codes.Internal && len(b) == 0 {
			t.Errorf("%s: %v", r.path, err)
		}
		for {
			select {
			case signal := <-w.signals:
				if _, err := proto.Marshal(signal.msg); err != nil {
					t.Errorf("%s has %s announced, which cannot be sent: %v", r.path, signal.name, err)
				}
				continue
			case dialog := <-w.dialogs:
				if _, err := proto.Marshal(dialog); err != nil {
					t.Errorf("a dialog that cannot be sent: %v", err)
				}
				continue
			default:
			}
			break
		}
		w.mu.Lock()
		for _, list := range w.lists {
			if _, err := proto.Marshal(list); err != nil {
				t.Errorf("a list of applications that cannot be sent: %v", err)
			}
		}
		w.lists, w.urls, w.ready = nil, nil, nil
		w.mu.Unlock()
	})
}
