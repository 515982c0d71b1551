package maitred

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

func script(text string) []string { return []string{"sh", "-c", text} }

func TestLaunchProcess(t *testing.T) {
	client, _ := serve(t, nil)
	tests := map[string]struct {
		req  *pb.LaunchProcessRequest
		want *pb.LaunchProcessResponse
	}{
		"exit status 0": {
			&pb.LaunchProcessRequest{Argv: []string{"true"}, WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED},
		},
		"another exit status": {
			&pb.LaunchProcessRequest{Argv: script("exit 42"), WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED, Code: 42},
		},
		"a signal": {
			&pb.LaunchProcessRequest{Argv: script("kill -TERM $$"), WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_SIGNALED, Code: 15},
		},
		"nobody waits": {
			&pb.LaunchProcessRequest{Argv: []string{"true"}},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_LAUNCHED},
		},
		"an absolute path": {
			&pb.LaunchProcessRequest{Argv: []string{"/bin/sh", "-c", "exit 1"}, WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED, Code: 1},
		},
		"a program that is not there": {
			&pb.LaunchProcessRequest{Argv: []string{"no-such-program"}, WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_FAILED, Code: int32(unix.ENOENT)},
		},
		"a path that is not there, respawned": {
			&pb.LaunchProcessRequest{Argv: []string{"/no/such/program"}, Respawn: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_FAILED, Code: int32(unix.ENOENT)},
		},
		"a file that is no program": {
			&pb.LaunchProcessRequest{Argv: []string{"/etc/passwd"}},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_FAILED, Code: int32(unix.EACCES)},
		},
		"the environment": {
			&pb.LaunchProcessRequest{
				Argv:        script(`test "$GREETING" = "a=b c" && test "$HOME" = /root && command -v sh >/dev/null`),
				Env:         map[string]string{"GREETING": "a=b c"},
				WaitForExit: true,
			},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED},
		},
		"a replaced PATH": {
			&pb.LaunchProcessRequest{Argv: script(`test "$PATH" = /nowhere`), Env: map[string]string{"PATH": "/nowhere"}, WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED},
		},
		"no input": {
			&pb.LaunchProcessRequest{Argv: script("read line"), WaitForExit: true},
			&pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED, Code: 1},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := client.LaunchProcess(t.Context(), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestLaunchProcessRefuses(t *testing.T) {
	client, _ := serve(t, nil)
	for name, req := range map[string]*pb.LaunchProcessRequest{
		"no program":               {},
		"an empty program":         {Argv: []string{""}},
		"both flags":               {Argv: []string{"true"}, Respawn: true, WaitForExit: true},
		"a relative path":          {Argv: []string{"bin/true"}},
		"a NUL in an argument":     {Argv: []string{"true", "a\x00b"}},
		"a variable with no name":  {Argv: []string{"true"}, Env: map[string]string{"": "x"}},
		"an equals sign in a name": {Argv: []string{"true"}, Env: map[string]string{"a=b": "x"}},
		"a NUL in a value":         {Argv: []string{"true"}, Env: map[string]string{"a": "\x00"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.LaunchProcess(t.Context(), req)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
}

func TestLaunchProcessOnTheConsole(t *testing.T) {
	console := t.TempDir() + "/console"
	if err := os.WriteFile(console, []byte("typed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client, server := serve(t, func(s *Server) { s.consolePath = console })
	got, err := client.LaunchProcess(t.Context(), &pb.LaunchProcessRequest{
		Argv: script("read line; echo got $line; echo error >&2"), UseConsole: true, WaitForExit: true,
	})
	if err != nil || got.Status != pb.ProcessStatus_EXITED {
		t.Fatalf("%v, %v", got, err)
	}
	if data, err := os.ReadFile(console); err != nil || string(data) != "typed\ngot typed\nerror\n" {
		t.Errorf("the console shows %q, %v", data, err)
	}
	server.consolePath = "/no/such/console"
	got, err = client.LaunchProcess(t.Context(), &pb.LaunchProcessRequest{Argv: []string{"true"}, UseConsole: true})
	if err != nil || got.Status != pb.ProcessStatus_FAILED || got.Code != int32(unix.ENOENT) {
		t.Errorf("without a console: %v, %v", got, err)
	}
}

func TestLaunchProcessLeavesRunningWhatTheCallerNoLongerAwaits(t *testing.T) {
	client, _ := serve(t, nil)
	dir := t.TempDir()
	for _, name := range []string{"begun", "alive"} {
		if err := unix.Mkfifo(dir+"/"+name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := client.LaunchProcess(ctx, &pb.LaunchProcessRequest{Argv: script("cd " + dir + "; echo . > begun; echo . > alive"), WaitForExit: true})
		ended <- err
	}()
	said := func(name string) {
		t.Helper()
		if data, err := os.ReadFile(dir + "/" + name); err != nil || string(data) != ".\n" {
			t.Errorf("the program said %q, %v", data, err)
		}
	}
	said("begun")
	cancel()
	wantCode(t, <-ended, codes.Canceled)
	said("alive")
}

func TestLaunchProcessRespawns(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	client, server := serve(t, nil)
	fifo := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// The last one waits for a reader.
	t.Cleanup(func() {
		server.services.Stop()
		server.services.End("sh", unix.SIGKILL, time.Minute)
	})
	got, err := client.LaunchProcess(t.Context(), &pb.LaunchProcessRequest{Argv: script("echo again > " + fifo), Respawn: true})
	if err != nil || got.Status != pb.ProcessStatus_LAUNCHED {
		t.Fatalf("%v, %v", got, err)
	}
	for range 3 {
		if data, err := os.ReadFile(fifo); err != nil || !strings.HasPrefix(string(data), "again\n") {
			t.Fatalf("%q, %v", data, err)
		}
	}
}

func TestLaunchProcessWhileGoingDown(t *testing.T) {
	client, server := serve(t, nil)
	server.services.Stop()
	_, err := client.LaunchProcess(t.Context(), &pb.LaunchProcessRequest{Argv: []string{"true"}, Respawn: true})
	wantCode(t, err, codes.Unavailable)
}
