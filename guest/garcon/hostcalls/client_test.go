package hostcalls

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

const testToken = "0f0e5cc5-7c1d-4c6e-a7b1-0123456789ab"

// Every rpc of the contract has its method, which sends the token and the
// deadline, and says what the host says.
func TestEveryCall(t *testing.T) {
	var method, token string
	var limited bool
	intercept := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
		method = info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
		_, limited = ctx.Deadline()
		token = ""
		m := req.(proto.Message).ProtoReflect()
		if f := m.Descriptor().Fields().ByName(protoreflect.Name("token")); f != nil {
			token = m.Get(f).String()
		}
		return nil, status.Error(codes.AlreadyExists, "heard")
	}
	dir, err := os.MkdirTemp("", "host-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	face := grpc.NewServer(grpc.UnaryInterceptor(intercept))
	pb.RegisterContainerListenerServer(face, pb.UnimplementedContainerListenerServer{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		face.Serve(l)
	}()
	defer func() {
		face.Stop()
		<-done
	}()
	c, err := New(testToken, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "s"))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	methods := pb.File_container_host_proto.Services().ByName("ContainerListener").Methods()
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		f := reflect.ValueOf(c).MethodByName(name)
		if !f.IsValid() {
			t.Errorf("no method %s", name)
			continue
		}
		method, limited = "", false
		res := f.Call([]reflect.Value{reflect.ValueOf(t.Context()), reflect.New(f.Type().In(1).Elem())})
		err, _ := res[len(res)-1].Interface().(error)
		if status.Code(err) != codes.AlreadyExists {
			t.Errorf("%s: %v, want what the host says", name, err)
		}
		want := testToken
		if name == "ForwardSecurityKeyMessage" {
			want = ""
		}
		if method != name || token != want || !limited {
			t.Errorf("%s came as %s with the token %q and a deadline: %t", name, method, token, limited)
		}
	}
}

func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := ReadToken(path); !os.IsNotExist(err) {
		t.Errorf("without a file: %v", err)
	}
	for text, want := range map[string]string{
		testToken: testToken, testToken + "x": testToken, "short\n": "short", "": "", " \n": "", "a\xff": "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadToken(path); got != want || (err == nil) != (want != "") {
			t.Errorf("of %q it reads %q, %v", text, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := WaitToken(ctx, filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "no token for this container") {
		t.Errorf("waiting in vain ends with %v", err)
	}
}

// used is a host that counts calls which mean nothing.
type used struct {
	pb.UnimplementedContainerListenerServer
	calls chan string
}

func (u used) ContainerReady(context.Context, *pb.ContainerStartupInfo) (*vmtoolspb.EmptyMessage, error) {
	return &vmtoolspb.EmptyMessage{}, nil
}

func (u used) ReportMetrics(_ context.Context, r *pb.ReportMetricsRequest) (*pb.ReportMetricsResponse, error) {
	u.calls <- r.Token
	return nil, status.Error(codes.ResourceExhausted, "too many")
}

// A host ends connections that are idle: an agent that has nothing to say keeps
// its own, since another one would mean that the host's service has gone.
func TestAConnectionIsKeptUntilTheHostGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	host := used{calls: make(chan string)}
	face := grpc.NewServer(grpc.WaitForHandlers(true))
	pb.RegisterContainerListenerServer(face, host)
	served := make(chan struct{})
	go func() {
		defer close(served)
		face.Serve(l)
	}()
	c, err := New(testToken, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.keepUp = time.Millisecond
	if err := c.ContainerReady(t.Context(), &pb.ContainerStartupInfo{}); err != nil {
		t.Fatal(err)
	}
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		c.WaitLost(t.Context())
	}()
	for range 3 {
		select {
		case token := <-host.calls:
			if token != testToken {
				t.Errorf("the token is %q", token)
			}
		case <-lost:
			t.Fatal("the connection is lost while the host is there")
		}
	}
	go func() {
		for range host.calls { // one that is under way
		}
	}()
	face.Stop()
	<-lost
	<-served
	close(host.calls)
}
