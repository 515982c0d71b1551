package maitred

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestSetTime(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 123, time.UTC)
	tests := map[string]struct {
		time *timestamppb.Timestamp
		code codes.Code
		set  bool
	}{
		"now":                      {timestamppb.New(now), codes.OK, true},
		"zero":                     {&timestamppb.Timestamp{}, codes.OK, false},
		"an hour after zero":       {&timestamppb.Timestamp{Seconds: 3600}, codes.OK, false},
		"a second before zero":     {&timestamppb.Timestamp{Seconds: -1}, codes.OK, false},
		"1960":                     {timestamppb.New(time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)), codes.InvalidArgument, false},
		"none":                     {nil, codes.InvalidArgument, false},
		"too many nanoseconds":     {&timestamppb.Timestamp{Seconds: now.Unix(), Nanos: 1e9}, codes.InvalidArgument, false},
		"after the last timestamp": {&timestamppb.Timestamp{Seconds: 1 << 60}, codes.InvalidArgument, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var set []time.Time
			client, _ := serve(t, func(s *Server) {
				s.setClock = func(to time.Time) error { set = append(set, to); return nil }
			})
			_, err := client.SetTime(t.Context(), &pb.SetTimeRequest{Time: tt.time})
			wantCode(t, err, tt.code)
			if tt.set && (len(set) != 1 || !set[0].Equal(now)) || !tt.set && len(set) > 0 {
				t.Errorf("the clock was set to %v", set)
			}
		})
	}
}

func TestSetTimeSaysWhyItCannot(t *testing.T) {
	client, _ := serve(t, func(s *Server) { s.setClock = func(time.Time) error { return unix.EPERM } })
	_, err := client.SetTime(t.Context(), &pb.SetTimeRequest{Time: timestamppb.Now()})
	wantCode(t, err, codes.Internal)
}

func TestGetKernelVersion(t *testing.T) {
	client, _ := serve(t, nil)
	got, err := client.GetKernelVersion(t.Context(), &pb.EmptyMessage{})
	if err != nil {
		t.Fatal(err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	if got.KernelRelease != unix.ByteSliceToString(u.Release[:]) || got.KernelVersion != unix.ByteSliceToString(u.Version[:]) {
		t.Errorf("got %v", got)
	}
}

func TestShutdownAnswersFirst(t *testing.T) {
	client, server := serve(t, nil)
	select {
	case <-server.shutdown:
		t.Fatal("nobody asked yet")
	default:
	}
	for range 2 {
		if _, err := client.Shutdown(t.Context(), &pb.EmptyMessage{}); err != nil {
			t.Fatal(err)
		}
	}
	<-server.shutdown
}

// Every call of the contract is answered, in words.
func TestCallsThatAreNotDoneYet(t *testing.T) {
	client, _ := serve(t, nil)
	for _, method := range []string{
		"ConfigureContainerGuest", "ResetIPv6", "OnHostNetworkChanged", "SetTimezone", "ResizeFilesystem",
		"GetResizeStatus", "GetResizeBounds", "GetAvailableSpace", "PrepareToSuspend", "UpdateStorageBalloon", "SetUpUser",
	} {
		t.Run(method, func(t *testing.T) {
			call := reflect.ValueOf(client).MethodByName(method)
			req := reflect.New(call.Type().In(1).Elem())
			err, _ := call.Call([]reflect.Value{reflect.ValueOf(t.Context()), req})[1].Interface().(error)
			wantCode(t, err, codes.Unimplemented)
			if want := method + ": this VM's agent cannot do that yet"; status.Convert(err).Message() != want {
				t.Errorf("it says %q, want %q", status.Convert(err).Message(), want)
			}
		})
	}
}

func TestDefectInOneCallIsNotTheEnd(t *testing.T) {
	client, _ := serve(t, func(s *Server) { s.setClock = func(time.Time) error { panic("defect") } })
	_, err := client.SetTime(t.Context(), &pb.SetTimeRequest{Time: timestamppb.Now()})
	wantCode(t, err, codes.Internal)
	if strings.Contains(err.Error(), "goroutine") {
		t.Errorf("the host is shown a stack: %v", err)
	}
	if _, err := client.GetKernelVersion(context.Background(), &pb.EmptyMessage{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
