package maitred_test

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

const vmReady = "/vm_tools.StartupListener/VmReady"

func TestVmReady(t *testing.T) {
	p := newPair(t, nil)
	if p.isReady() {
		t.Fatal("ready before the guest's word")
	}
	c := p.listener()
	for range 2 { // a guest that was not answered calls again
		if _, err := c.VmReady(t.Context(), &pb.EmptyMessage{}); err != nil {
			t.Fatal(err)
		}
		<-p.Ready()
	}
	p.MarkReady()
}

func TestMarkReady(t *testing.T) {
	p := newPair(t, nil)
	p.MarkReady()
	p.MarkReady()
	<-p.Ready()
	// The guest may still say so.
	if _, err := p.listener().VmReady(t.Context(), &pb.EmptyMessage{}); err != nil {
		t.Error(err)
	}
}

// What the host does not serve, it refuses.
func TestOtherCalls(t *testing.T) {
	p := newPair(t, nil)
	c, err := grpc.NewClient("unix://"+p.endpoint, grpc.WithTransportCredentials(insecureCreds()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, method := range []string{"/vm_tools.Maitred/Shutdown", "/vm_tools.StartupListener/Nothing", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/x/"} {
		if err := c.Invoke(t.Context(), method, &pb.EmptyMessage{}, &pb.EmptyMessage{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
	if p.isReady() {
		t.Error("ready without the guest's word")
	}
}

// A path without its slash has slipped past gRPC servers before
// (CVE-2026-33186).
func TestPathWithoutSlash(t *testing.T) {
	p := newPair(t, nil)
	p.greet(p.dialRaw()).call(strings.TrimPrefix(vmReady, "/"))
	if p.isReady() {
		t.Error("a path without a slash was served")
	}
	// The same bytes with the slash are a good call.
	if _, ok := p.greet(p.dialRaw()).call(vmReady).(*http2.HeadersFrame); !ok || !p.isReady() {
		t.Error("the raw call does not work at all")
	}
}

// A guest's messages and headers are bounded; what is larger is refused and
// does not count as a word of the guest's.
func TestOversizedCalls(t *testing.T) {
	p := newPair(t, nil)
	c := p.listener()
	big := &pb.EmptyMessage{}
	unknown := protowire.AppendTag(nil, 1000, protowire.BytesType)
	big.ProtoReflect().SetUnknown(protowire.AppendBytes(unknown, make([]byte, 100<<10)))
	if _, err := c.VmReady(t.Context(), big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message of 100 KiB: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", 100<<10))
	if _, err := c.VmReady(ctx, &pb.EmptyMessage{}); err == nil {
		t.Error("headers of 100 KiB were taken from a client with manners")
	}
	// One that ignores the limit it was told, in as few bytes as it can.
	f := p.greet(p.dialRaw()).call(vmReady, hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 100<<10)})
	if _, ok := f.(*http2.HeadersFrame); ok {
		t.Errorf("headers of 100 KiB were answered with %v", f)
	}
	if p.isReady() {
		t.Error("a refused call made the guest ready")
	}
	if _, err := c.VmReady(t.Context(), &pb.EmptyMessage{}); err != nil {
		t.Errorf("a good call afterwards: %v", err)
	}
}

// Whatever a guest sends that is no HTTP/2, the host closes the stream and
// serves the next.
func TestGarbage(t *testing.T) {
	p := newPair(t, nil)
	for name, bytes := range map[string]string{
		"nothing":              "",
		"text":                 "GET / HTTP/1.1\r\n\r\n",
		"zeros":                strings.Repeat("\x00", 4096),
		"noise":                strings.Repeat("\xff\x00\x7f", 4096),
		"a greeting, then it":  http2.ClientPreface + strings.Repeat("\xff", 4096),
		"a frame of 16 MiB":    http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\xff\xff\xff\x00\x00\x00\x00\x00\x01",
		"a frame in stream 0":  http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01\x04\x00\x00\x00\x00",
		"headers that are not": http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
	} {
		c := p.dialRaw()
		io.WriteString(c, bytes)
		c.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
			t.Errorf("%s: the host keeps the stream", name)
		}
		c.Close()
	}
	if p.isReady() {
		t.Error("garbage made the guest ready")
	}
	if _, err := p.listener().VmReady(t.Context(), &pb.EmptyMessage{}); err != nil {
		t.Errorf("a good call afterwards: %v", err)
	}
}

// A guest has a few streams at a time and waits for the next.
func TestConnectionsAreBounded(t *testing.T) {
	p := newPair(t, nil)
	const limit = 8
	answered := func(h *h2) bool {
		_, err := h.ReadFrame() // the host's settings
		return err == nil
	}
	var open []*h2
	for range limit {
		h := p.greet(p.dialRaw())
		if !answered(h) {
			t.Fatal("no answer")
		}
		open = append(open, h)
	}
	more := p.greet(p.dialRaw())
	more.c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if answered(more) {
		t.Errorf("stream %d is served", limit+1)
	}
	open[0].c.Close()
	more.c.SetReadDeadline(time.Now().Add(patience))
	if !answered(more) {
		t.Error("the waiting stream is not served when another has gone")
	}
}

// Close ends everything, whatever the guest is doing; goleak checks the rest.
func TestClose(t *testing.T) {
	blocked := make(chan struct{})
	p := newPair(t, &guest{shutdown: blockUntilDone(blocked)})
	p.greet(p.dialRaw())
	called := make(chan error, 1)
	go func() { called <- p.PowerOff(t.Context()) }()
	<-blocked
	p.Close()
	if err := <-called; err == nil {
		t.Error("a call survived Close")
	}
	if c, err := net.Dial("unix", p.endpoint); err == nil {
		c.Close()
		t.Error("the endpoint still listens")
	}
	p.Close()
	if err := p.PowerOff(t.Context()); err == nil {
		t.Error("a call after Close succeeded")
	}
	if log := p.log.String(); log != "" {
		t.Errorf("an orderly end was logged: %s", log)
	}
}
